"""TFDS's own builders prepare source files in the official layout, and we read them back.

Only the network is replaced: a download answers with a file made here. Everything after it
(extraction, the builder's parsing, its features, shuffling, the records) is TFDS's code.
"""

import dataclasses
import gzip
import io
import json
import tarfile
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


def read_all(data):
    """All examples of train800, val200 and test as (image bytes, label)."""
    found = []
    for split in SPLITS:
        examples = data.load(split)
        assert len(examples.labels) == data.size(split) == data.task.sizes[split]
        found += [(i.tobytes(), int(n)) for i, n in zip(*examples, strict=True)]
    return found


def check(data, truth):
    """Every example read is one of the source, with its label, and none comes twice."""
    found = read_all(data)
    assert len(found) == len({image for image, _ in found})
    assert [label for _, label in found] == [truth[image] for image, _ in found]
    assert len({label for _, label in found}) > 2


def check_order(data, split="train800"):
    """The order is that of TFDS reading the split by itself."""
    ours = data.load(split)
    dataset = data.source.builder.as_dataset(split=data.task.splits[split], shuffle_files=False)
    theirs = np.stack([example["image"] for example in dataset.as_numpy_iterator()])
    np.testing.assert_array_equal(ours.images, np.broadcast_to(theirs, ours.images.shape))


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
        check(
            data,
            {
                tiled(image * 255): int(row[latent] / width)
                for image, row in zip(images, classes, strict=True)
            },
        )
    assert set(np.unique(data.load("test").images)) == {0, 255}
    assert data.provenance["used_version"] == "2.0.0"
    assert not data.provenance["mapped"]


def norb_matrix(array):
    """The file format of smallNORB: magic number, rank, at least three sizes, the numbers."""
    magic = {np.dtype("uint8"): 507333717, np.dtype("int32"): 507333716}[array.dtype]
    sizes = list(array.shape) + [1] * (3 - array.ndim)
    return np.array([magic, array.ndim, *sizes], "<i4").tobytes() + array.tobytes()


def test_smallnorb_binary_matrices(tmp_path):
    rng = np.random.default_rng(1)
    files, azimuths, elevations = {}, {}, {}
    for prefix, count in (
        ("smallnorb-5x46789x9x18x6x2x96x96-training", 80),
        ("smallnorb-5x01235x9x18x6x2x96x96-testing", 60),
    ):
        pairs = rng.integers(0, 256, (count, 2, 96, 96), dtype=np.uint8)
        info = np.stack([rng.integers(0, n, count) for n in (10, 9, 18, 6)], axis=1)
        azimuths |= {tiled(p[0]): int(i[2]) for p, i in zip(pairs, info, strict=True)}
        elevations |= {tiled(p[0]): int(i[1]) for p, i in zip(pairs, info, strict=True)}
        info[:, 2] *= 2  # the files hold 0, 2, ..., 34
        category = rng.integers(0, 5, count)
        for name, array in (("dat", pairs), ("cat", category), ("info", info)):
            path = tmp_path / f"{prefix}-{name}.mat.gz"
            array = array if name == "dat" else array.astype(np.int32)
            path.write_bytes(gzip.compress(norb_matrix(array), 1))
            files[path.name] = path
    for name, truth in (("smallnorb_azi", azimuths), ("smallnorb_ele", elevations)):
        task = little(name, "test[50%:]", 30, val="test[:20]")
        data = prepare_from(files, task, tmp_path / "data", 96)
        check(data, truth)
    check_order(data, "val200")


def test_svhn_cropped_mat(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    rng = np.random.default_rng(2)
    files, truth = {}, {}
    for split, count in (("train", 100), ("test", 50), ("extra", 3)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        digits = rng.integers(1, 11, (count, 1), dtype=np.uint8)  # 10 stands for digit 0
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": digits})
        files[path.name] = path
        for index in range(count):
            truth[images[..., index].tobytes()] = int(digits[index, 0]) % 10
    data = prepare_from(files, little("svhn", "test", 50), tmp_path / "data", 32)
    check(data, truth)
    check_order(data)
    assert data.provenance["used_version"] == "3.1.0"
    both = data.load("train800val200")
    parts = [data.load("train800"), data.load("val200")]
    np.testing.assert_array_equal(both.images, np.concatenate([p.images for p in parts]))
    np.testing.assert_array_equal(both.labels, np.concatenate([p.labels for p in parts]))


def test_cifar100_binary(tmp_path):
    rng = np.random.default_rng(3)
    truth = {}
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz", compresslevel=1) as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for name, count in (("train.bin", 100), ("test.bin", 60)):
            rows = rng.integers(0, 256, (count, 2 + 3072), dtype=np.uint8)
            rows[:, 0], rows[:, 1] = rng.integers(0, 20, count), rng.integers(0, 100, count)
            add(name, rows.tobytes())  # coarse label, fine label, red, green, blue plane
            for row in rows:
                planes = row[2:].reshape(3, 32, 32)
                truth[planes.transpose(1, 2, 0).tobytes()] = int(row[1])
        add("fine_label_names.txt", "\n".join(f"f{i}" for i in range(100)).encode())
        add("coarse_label_names.txt", "\n".join(f"c{i}" for i in range(20)).encode())
    files = {"cifar-100-binary.tar.gz": tmp_path / "cifar-100-binary.tar.gz"}
    data = prepare_from(files, little("cifar", "test", 60), tmp_path / "data", 32)
    check(data, truth)
    check_order(data)


def clevr_object(depth):
    base = {"color": "red", "material": "metal", "shape": "cube", "size": "large"}
    return base | {"rotation": 0.5, "pixel_coords": [9, 9, depth], "3d_coords": [0, 1, 2]}


def test_clevr_scenes(tmp_path):
    rng = np.random.default_rng(4)
    count_truth, distance_truth = {}, {}
    path = tmp_path / "CLEVR_v1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", 100), ("val", 40), ("test", 2)):
            scenes, questions = [], []
            for index in range(count):
                name = f"CLEVR_{split}_{index:06d}.png"
                pixels = rng.integers(0, 256, (12, 12, 4), dtype=np.uint8)
                pixels[..., 3] = 255  # CLEVR's files are RGBA
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                archive.writestr(f"CLEVR_v1.0/images/{split}/{name}", buffer.getvalue())
                depths = rng.uniform(7, 14, rng.integers(3, 11))
                scenes.append({"objects": [clevr_object(float(d)) for d in depths]})
                questions.append({"image_filename": name, "question": "?", "answer": "yes"})
                key, near = pixels[..., :3].tobytes(), min(depths)
                count_truth[key] = len(depths) - 3
                distance_truth[key] = sum(near > edge for edge in (8, 8.5, 9, 9.5, 10))
            root = "CLEVR_v1.0"
            archive.writestr(
                f"{root}/questions/CLEVR_{split}_questions.json",
                json.dumps({"questions": questions}),
            )
            if split != "test":  # the published test set has no scenes
                archive.writestr(
                    f"{root}/scenes/CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes})
                )
    for name, truth in (("clevr_count", count_truth), ("clevr_dist", distance_truth)):
        task = little(name, "validation", 40)
        data = prepare_from({path.name: path}, task, tmp_path / "data", 12)
        check(data, truth)
    check_order(data)


def kitti_line(kind, z):
    return f"{kind} 0.00 0 -0.20 2.0 1.0 9.0 7.0 1.9 0.5 1.2 1.8 1.5 {z:.2f} 0.01"


def test_kitti_annotations(tmp_path):
    pytest.importorskip("cv2", reason="TFDS's KITTI builder decodes with opencv-python-headless")
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
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            image_archive.writestr(f"training/image_2/{index:06d}.png", buffer.getvalue())
            objects = [
                (kinds[rng.integers(6)], float(np.round(rng.uniform(1, 60), 2)))
                for _ in range(rng.integers(1, 4))
            ]
            lines = "\n".join(kitti_line(*o) for o in objects)
            label_archive.writestr(f"training/label_2/{index:06d}.txt", lines + "\n")
            near = [z for kind, z in objects if kind in ("Car", "Van", "Truck")]
            truth[pixels.tobytes()] = sum(min(near) > e for e in (8, 20)) if near else 3
    task = little("kitti", "test", 3 * per_video, val="validation[:20]")
    data = prepare_from(paths, task, tmp_path / "data", 10)
    check(data, truth)
    assert data.provenance["requested_version"] == "3.1.0"
    assert data.provenance["used_version"] == "3.3.0"
    assert data.provenance["mapped"]
