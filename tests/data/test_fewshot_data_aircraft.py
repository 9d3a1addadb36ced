"""Our TFDS builder prepares an archive in the official layout, and we read it back."""

import dataclasses
import io
import tarfile
from unittest import mock

import numpy as np
import pytest
from etils import epath
from PIL import Image

from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.data.sources import prepare
from fact_jax.errors import UserError

COUNTS = {"train": 300, "val": 120, "test": 110}
TASK = dataclasses.replace(get_task("fgvc_aircraft_2shot"), sizes=COUNTS)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive, and for each part the images and their variants."""
    from fact_jax.data.aircraft import VARIANTS

    path, truth = tmp_path_factory.mktemp("source") / "aircraft.tar.gz", {}
    with tarfile.open(path, "w:gz", compresslevel=1) as file:

        def add(name, content):
            member = tarfile.TarInfo(f"fgvc-aircraft-2013b/data/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))

        rng, number = np.random.default_rng(0), 34309
        add("variants.txt", "\n".join(VARIANTS).encode())
        for part, count in COUNTS.items():
            lines, truth[part] = [], {}
            for i in range(count):
                pixels = np.full((10, 14, 3), rng.integers(0, 256, 3), np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                add(f"images/{number:07d}.jpg", buffer.getvalue())
                lines.append(f"{number:07d} {VARIANTS[i % 100]}")
                truth[part][pixels[0, 0].tobytes()] = VARIANTS[i % 100]
                number += 1
            add(f"images_variant_{part}.txt", "\n".join(lines).encode())
    return path, truth


def test_the_archive_is_read(archive, tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils.lazy_imports_utils import promise

    path, truth = archive
    asked = []

    def answer(self, resource):
        asked.append(getattr(resource, "url", resource))
        return promise.Promise.resolve(epath.Path(path))

    settings = DataSettings(data_dir=str(tmp_path), image_size=8, download=True)
    with mock.patch.object(tfds.download.DownloadManager, "_download_or_get_cache", answer):
        data = open_task(TASK, settings)
    assert asked == [
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
    ]
    names = data.class_names
    for part, split in (("val", "val"), ("test", "test"), ("train", "train-seed0")):
        images, labels = data.load(split)
        for image, label in zip(images, labels, strict=True):
            assert truth[part][image[0, 0].tobytes()] == names[label]
    assert len(data.load("train-seed0").labels) == 200
    assert data.provenance["used_version"] == "1.0.0"
    info = prepare.find_builder(TASK, str(tmp_path)).builder.info.splits
    assert [info[s].num_examples for s in ("train", "validation", "test")] == [300, 120, 110]


def test_the_published_sizes_and_variants_are_expected(tmp_path):
    from fact_jax.data.aircraft import VARIANTS

    with pytest.raises(UserError, match="fgvc_aircraft"):
        open_task(get_task("fgvc_aircraft_2shot"), DataSettings(data_dir=str(tmp_path)))
    sizes = get_task("fgvc_aircraft_2shot").sizes
    assert sizes == {"train": 3334, "val": 3333, "test": 3333}
    assert list(VARIANTS) == sorted(set(VARIANTS))
    assert len(VARIANTS) == 100


def test_a_file_with_another_checksum_is_refused(archive, tmp_path):
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    (folder / "fgvc-aircraft-2013b.tar.gz").write_bytes(archive[0].read_bytes())
    with pytest.raises(UserError, match="NonMatchingChecksumError"):
        open_task(TASK, DataSettings(data_dir=str(tmp_path), download=True))
