"""TFDS's own builders prepare source files in the official layout, and we read them back.

Only the network is replaced: a download answers with a file made here. Everything after it
(extraction, the builder's parsing, its features, shuffling, the records) is TFDS's code.
"""

import dataclasses
import io
import zipfile
from unittest import mock

import numpy as np
import pytest
from etils import epath
from PIL import Image

from fact_jax.data import VTAB, DataSettings, open_task
from fact_jax.data.tasks import make_splits

SPLITS = ("train800", "val200", "test")


def little(name, test, size, val="train[80:100]"):
    """A task of 80, 20 and `size` examples; test_data_tasks.py has the published splits."""
    sizes = {"train800": 80, "val200": 20, "train800val200": 100, "test": size}
    splits = make_splits(val, test, train="train[:80]")
    return dataclasses.replace(VTAB[name], splits=splits, sizes=sizes)


def prepare_from(files, task, data_dir, image_size):
    """Opens a task whose downloads, by file name, are `files`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource as resource_lib
    from tensorflow_datasets.core.utils.lazy_imports_utils import promise

    def answer(self, resource):
        url = resource.url if isinstance(resource, resource_lib.Resource) else resource
        name = url.split("?")[0].rsplit("/", 1)[1]
        return promise.Promise.resolve(epath.Path(files[name]))

    settings = DataSettings(data_dir=str(data_dir), image_size=image_size, download=True)
    with mock.patch.object(tfds.download.DownloadManager, "_download_or_get_cache", answer):
        return open_task(task, settings)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def check(data, truth, order=None):
    """Every example read is one of the source, with its label, and none comes twice.

    The order of the split `order` is that of TFDS reading it by itself.
    """
    found = []
    for split in SPLITS:
        examples = data.load(split)
        assert len(examples.labels) == data.size(split) == data.task.sizes[split]
        found += [(i.tobytes(), int(n)) for i, n in zip(*examples, strict=True)]
    assert len(found) == len({image for image, _ in found})
    assert [label for _, label in found] == [truth[image] for image, _ in found]
    assert len({label for _, label in found}) > 2
    if order:
        builder, string = data.source.builder, data.task.splits[order]
        dataset = builder.as_dataset(split=string, shuffle_files=False).as_numpy_iterator()
        theirs, ours = np.stack([example["image"] for example in dataset]), data.load(order).images
        np.testing.assert_array_equal(ours, np.broadcast_to(theirs, ours.shape))


def tiled(image):
    """uint8 [h, w] -> bytes of [h, w, 3]."""
    return np.repeat(image[..., None], 3, axis=-1).tobytes()


def test_dsprites_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    count = 130  # of 737,280: the builder takes what the file holds
    images = rng.integers(0, 2, (count, 64, 64), dtype=np.uint8)
    classes = np.stack([rng.integers(0, n, count) for n in (1, 3, 6, 40, 32, 32)], axis=1)
    with h5py.File(tmp_path / "source.hdf5", "w") as file:
        file["imgs"] = images
        file["latents/classes"] = classes.astype(np.int64)
        file["latents/values"] = classes.astype(np.float64)
    files = {"dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5": tmp_path / "source.hdf5"}
    for name, latent, width in (("dsprites_loc", 4, 2.0), ("dsprites_ori", 3, 2.5)):
        data = prepare_from(files, little(name, "train[100:]", 30), tmp_path / "data", 64)
        labels = (classes[:, latent] / width).astype(int)
        check(data, dict(zip(map(tiled, images * 255), labels, strict=True)))
    assert set(np.unique(data.load("test").images)) == {0, 255}
    assert data.provenance["used_version"] == "2.0.0"
    assert not data.provenance["mapped"]


def kitti_line(kind, z):
    return f"{kind} 0.00 0 -0.20 2.0 1.0 9.0 7.0 1.9 0.5 1.2 1.8 1.5 {z:.2f} 0.01"


def test_kitti_annotations(tmp_path):
    pytest.importorskip("cv2")  # the builder decodes with it
    rng = np.random.default_rng(5)
    videos, per_video = 30, 7  # 24 videos train, 3 validation, 3 test
    count = videos * per_video
    order = rng.permutation(count) + 1
    frames = [f"2011_09_26 drive_{i // per_video:04d} {i % per_video:010d}" for i in range(count)]
    truth, kinds = {}, ["Car", "Van", "Truck", "Pedestrian", "Cyclist", "DontCare"]
    paths = {
        name: tmp_path / name
        for name in ("data_object_image_2.zip", "data_object_label_2.zip", "devkit_object.zip")
    }
    with zipfile.ZipFile(paths["devkit_object.zip"], "w") as archive:
        archive.writestr("mapping/train_rand.txt", ",".join(map(str, order)))
        archive.writestr("mapping/train_mapping.txt", "\n".join(frames))
    with (
        zipfile.ZipFile(paths["data_object_image_2.zip"], "w") as image_archive,
        zipfile.ZipFile(paths["data_object_label_2.zip"], "w") as label_archive,
    ):
        for index in range(count):
            pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            image_archive.writestr(f"training/image_2/{index:06d}.png", png(pixels))
            objects = [
                (kinds[rng.integers(6)], float(np.round(rng.uniform(1, 60), 2)))
                for _ in range(rng.integers(1, 4))
            ]
            lines = "".join(f"{kitti_line(*o)}\n" for o in objects)
            label_archive.writestr(f"training/label_2/{index:06d}.txt", lines)
            near = [z for kind, z in objects if kind in ("Car", "Van", "Truck")]
            truth[pixels.tobytes()] = sum(min(near) > e for e in (8, 20)) if near else 3
    task = little("kitti", "test", 3 * per_video, val="validation[:20]")
    data = prepare_from(paths, task, tmp_path / "data", 10)
    check(data, truth)
    assert data.provenance["requested_version"] == "3.1.0"
    assert data.provenance["used_version"] == "3.3.0"
    assert data.provenance["mapped"]
