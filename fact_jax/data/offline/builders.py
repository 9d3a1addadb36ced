"""TFDS builders of the offline suite: 800 / 200 / the rest as train / validation / test.

Importing this module imports TFDS and registers the builders, for mock data and for the test that
`bundled.py` reads the same.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from fact_jax.data.labels import Example
from fact_jax.data.offline import bundled


class _Offline(tfds.core.GeneratorBasedBuilder):
    """A bundled data set as a builder; the docstring of its class is its description."""

    VERSION = tfds.core.Version(bundled.VERSION)
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _describe(self, homepage: str) -> tfds.core.DatasetInfo:
        data = bundled.SETS[self.name]
        labels = {
            label: tfds.features.ClassLabel(names=names) for label, names in data.classes.items()
        }
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=data.shape), **labels}
            ),
            supervised_keys=("image", "label") if "label" in labels else None,
            homepage=homepage,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        splits = bundled.splits_of(self.name)
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows: list[tuple[int, Example]]) -> Iterator[tuple[int, Example]]:
        yield from rows


class OfflineDigits(_Offline):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels; 17 grey levels spread over 0..255."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://doi.org/10.24432/C50P49")


class OfflineFashion(_Offline):
    """The first 1,000 training images of Fashion-MNIST and its first 1,000 test images."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://github.com/zalandoresearch/fashion-mnist")


class OfflineSprites(_Offline):
    """2,000 different pictures of one sprite, drawn by the generative factors of dSprites."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://github.com/deepmind/dsprites-dataset")


class OfflineEmoji(_Offline):
    """Emoji of Twemoji on white, 48 x 48 pixels, by the nine categories of Unicode."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://github.com/iamcal/emoji-data")


class OfflineTextile(_Offline):
    """Parts of simulated pictures of textile, 32 x 32 pixels: without fault, or with one of two."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://github.com/fmegahed/conformal-clip-data")


class OfflineScript(_Offline):
    """Single letters of ten scripts, 48 x 48 pixels; test fonts are not those of training."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://packages.debian.org/bookworm/fonts/")


class OfflineScenes(_Offline):
    """2,000 pictures of 3 to 10 solids on a floor, drawn after CLEVR."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://cs.stanford.edu/people/jcjohns/clevr/")


class OfflineSolids(_Offline):
    """2,000 pictures of 100 solids on a turntable, drawn after smallNORB."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe("https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/")
