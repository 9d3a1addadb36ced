"""TFDS builders of the offline suite: 800 / 200 / the rest as train / validation / test.

Importing this module imports TFDS and registers the builders, for mock data and for the test that
`bundled.py` reads the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow_datasets as tfds

from fact_jax.data.labels import Example
from fact_jax.data.offline import bundled, sprites


class _Offline(tfds.core.GeneratorBasedBuilder):
    """Common part: the builder's examples come in one list, cut into the three splits."""

    VERSION = tfds.core.Version(bundled.VERSION)
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        examples = self._examples()
        stops = (0, bundled.NUM_TRAIN, bundled.NUM_TRAIN + bundled.NUM_VAL, len(examples))
        return {
            split: self._generate_examples(examples, start, stop)
            for split, start, stop in zip(
                ("train", "validation", "test"), stops[:-1], stops[1:], strict=True
            )
        }

    def _generate_examples(
        self, examples: list[Example], start: int, stop: int
    ) -> Iterator[tuple[int, Example]]:
        for key in range(start, stop):
            yield key, examples[key]

    def _examples(self) -> list[Example]:
        raise NotImplementedError


class OfflineDigits(_Offline):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels; 17 grey levels spread over 0..255."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _examples(self) -> list[Example]:
        return bundled.digits()


class OfflineFashion(_Offline):
    """The first 1,000 training images of Fashion-MNIST and its first 1,000 test images."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=bundled.FASHION_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _examples(self) -> list[Example]:
        return bundled.fashion()


class OfflineSprites(_Offline):
    """2,000 different pictures of one sprite, drawn by the generative factors of dSprites."""

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            name: tfds.features.ClassLabel(num_classes=count)
            for name, count in sprites.FACTORS.items()
        }
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(sprites.SIDE, sprites.SIDE, 1)), **labels}
            ),
            homepage="https://github.com/deepmind/dsprites-dataset",
        )

    def _examples(self) -> list[Example]:
        return bundled.drawn_sprites()
