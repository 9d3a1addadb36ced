"""TFDS builder of FGVC-Aircraft (Maji et al., 2013; arXiv:1306.5151), which TFDS 4.9 does not have.

Importing this module imports TFDS and registers the builder; `open_task` does so when a task
names it.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from fact_jax.data.labels import Example

URL = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
SIZE = 2_753_340_328  # bytes
# SHA-256 as public scripts that download the archive state it; the MD5 on its page is of an older.
SHA256 = "e4e323d410e29f0370c81eabdcbb0e2b813acea1de22891b70b58ff41bfc9834"

# In the order of the archive's variants.txt.
VARIANTS = (
    *("707-320", "727-200", "737-200", "737-300", "737-400", "737-500", "737-600", "737-700"),
    *("737-800", "737-900", "747-100", "747-200", "747-300", "747-400", "757-200", "757-300"),
    *("767-200", "767-300", "767-400", "777-200", "777-300", "A300B4", "A310", "A318", "A319"),
    *("A320", "A321", "A330-200", "A330-300", "A340-200", "A340-300", "A340-500", "A340-600"),
    *("A380", "ATR-42", "ATR-72", "An-12", "BAE 146-200", "BAE 146-300", "BAE-125"),
    *("Beechcraft 1900", "Boeing 717", "C-130", "C-47", "CRJ-200", "CRJ-700", "CRJ-900"),
    *("Cessna 172", "Cessna 208", "Cessna 525", "Cessna 560", "Challenger 600", "DC-10", "DC-3"),
    *("DC-6", "DC-8", "DC-9-30", "DH-82", "DHC-1", "DHC-6", "DHC-8-100", "DHC-8-300", "DR-400"),
    *("Dornier 328", "E-170", "E-190", "E-195", "EMB-120", "ERJ 135", "ERJ 145"),
    *("Embraer Legacy 600", "Eurofighter Typhoon", "F-16A/B", "F/A-18", "Falcon 2000"),
    *("Falcon 900", "Fokker 100", "Fokker 50", "Fokker 70", "Global Express", "Gulfstream IV"),
    *("Gulfstream V", "Hawk T1", "Il-76", "L-1011", "MD-11", "MD-80", "MD-87", "MD-90"),
    *("Metroliner", "Model B200", "PA-28", "SR-20", "Saab 2000", "Saab 340", "Spitfire"),
    *("Tornado", "Tu-134", "Tu-154", "Yak-42"),
)


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """FGVC-Aircraft: 10,000 photographs of 100 aircraft variants, 100 of each."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The archive fgvc-aircraft-2013b, variants."}

    url_infos = {  # in the place of a file of checksums beside the module
        URL: tfds.download.checksums.UrlInfo(
            size=SIZE, checksum=SHA256, filename=URL.rpartition("/")[2]
        )
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),  # as stored, copyright line included
                    "label": tfds.features.ClassLabel(names=VARIANTS),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, Example]]]:
        data = epath.Path(dl_manager.download_and_extract(URL)) / "fgvc-aircraft-2013b" / "data"
        parts = {"train": "train", "validation": "val", "test": "test"}
        return {split: self._generate_examples(data, part) for split, part in parts.items()}

    def _generate_examples(self, data: epath.Path, part: str) -> Iterator[tuple[str, Example]]:
        for line in (data / f"images_variant_{part}.txt").read_text().splitlines():
            number, _, variant = line.strip().partition(" ")
            name = f"{number}.jpg"
            yield name, {"image": data / "images" / name, "label": variant, "file_name": name}
