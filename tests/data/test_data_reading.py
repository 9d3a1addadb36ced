"""TaskData: streams, limits, the cache, mock data, and what is refused."""

import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from fact_jax.data import VTAB, DataSettings, cache, get_task, open_task
from fact_jax.data.sources import prepare
from fact_jax.data.tasks import make_splits
from fact_jax.errors import UserError

DTD = dataclasses.replace(
    VTAB["dtd"],
    splits=make_splits("train[80:150]", "train[150:]", train="train[:80]"),
    sizes={"train800": 80, "val200": 70, "train800val200": 150, "test": 30},
)


def examples(count=180):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (count, 3))
    return [
        (i, {"image": np.full((8, 6, 3), levels[i], np.uint8), "label": i % 47, "file_name": ""})
        for i in range(count)
    ]


def prepare_dtd(root):
    """DTD prepared by its builder from 180 flat pictures."""
    builder = type(prepare.find_builder(DTD, str(root)).builder)
    with mock.patch.object(builder, "_split_generators", return_value={"train": examples()}):
        prepare.prepare(DTD, str(root))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare_dtd(root)
    return str(root)


@pytest.fixture
def settings(data_dir):
    return DataSettings(data_dir=data_dir, image_size=8)


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_stream_is_load_in_batches_with_a_short_last_one(settings):
    data = open_task(DTD, settings)
    next(data.stream("val200", 32))  # one may be left early
    batches = list(data.stream("val200", 32))
    assert [len(batch.labels) for batch in batches] == [32, 32, 6]
    images, labels = joined(batches)
    whole = data.load("val200")
    np.testing.assert_array_equal(images, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)
    np.testing.assert_array_equal(data.load("val200", limit=10).images, whole.images[:10])
    assert [data.size("val200", limit) for limit in (10, 1000)] == [10, 70]
    record = data.provenance
    expected = {"task": "dtd", "builder": "dtd", "used_version": "3.0.1", "mapped": False}
    expected |= {"mock": False, "image_size": 8, "jpeg_quality": None, "file_format": "tfrecord"}
    assert expected.items() <= record.items()


def test_order_is_that_of_the_files_one_after_the_other(tmp_path):
    """TFDS by default takes blocks of 16 examples from each of many files in turn."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = prepare.find_builder(DTD, str(tmp_path)).builder
    with mock.patch.object(type(builder), "_split_generators", return_value={"train": examples()}):
        config = tfds.download.DownloadConfig(num_shards=5)
        builder.download_and_prepare(download_config=config)
    files = sorted(map(str, builder.data_path.glob("*.tfrecord*")))
    assert len(files) == 5
    records = tf.data.TFRecordDataset(files, num_parallel_reads=None).as_numpy_iterator()
    expected = [builder.info.features.deserialize_example(r)["image"].numpy() for r in records]
    settings = DataSettings(data_dir=str(tmp_path), image_size=8)
    images = open_task(DTD, settings).load("train800").images
    np.testing.assert_array_equal(images[:, 0, 0], np.stack(expected)[:80, 0, 0])


def test_wrong_split_and_limit_and_settings_are_refused(settings):
    data = open_task(DTD, settings)
    with pytest.raises(UserError, match="no split 'train'; it has train800"):
        data.load("train")
    with pytest.raises(UserError, match="limit must be at least 1"):
        data.load("test", limit=0)
    with pytest.raises(UserError, match="jpeg_quality must be 1 to 95"):
        DataSettings(jpeg_quality=100)
    with pytest.raises(UserError, match="image_size"):
        DataSettings(image_size=0)
    with pytest.raises(UserError, match="resize must be 'square' or 'crop', found 'center'"):
        DataSettings(resize="center")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dtd", ["fact-jax data --prepare --tasks=dtd --data_dir={}"]),
        ("sun397", ["source is dead", "SUN397.tar.gz", "404", "{}/downloads/manual"]),
        ("resisc45", ["NWPU-RESISC45.rar", "https://1drv.ms"]),
        ("diabetic_retinopathy", ["trainLabels.csv", "https://www.kaggle.com/c/diabetic"]),
    ],
)
def test_missing_data_give_what_a_person_must_do(name, words, tmp_path):
    manual = bool(VTAB[name].manual)
    with pytest.raises(UserError) as error:
        open_task(VTAB[name], DataSettings(data_dir=str(tmp_path), download=manual))
    for word in (*words, *(f"{{}}/downloads/manual/{path}" for path in VTAB[name].manual)):
        assert word.format(tmp_path) in str(error.value)


def test_failed_download_is_one_paragraph_with_its_reason(tmp_path):
    import tensorflow_datasets as tfds

    def refuse(self, resource):
        raise ConnectionError("no route to host")

    with (
        mock.patch.object(tfds.download.DownloadManager, "_download_or_get_cache", refuse),
        pytest.raises(UserError, match="ConnectionError: no route to host") as error,
    ):
        open_task(VTAB["dtd"], DataSettings(data_dir=str(tmp_path), download=True))
    assert "\n" not in str(error.value)


def test_a_source_file_in_the_manual_directory_is_taken_and_its_checksum_checked(tmp_path):
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(UserError, match="NonMatchingChecksumError") as error:
        open_task(VTAB["dtd"], DataSettings(data_dir=str(tmp_path), download=True))
    assert str(folder) in str(error.value)


def test_label_outside_the_classes_is_refused_and_leaves_nothing_in_the_cache(settings, tmp_path):
    task = dataclasses.replace(DTD, num_classes=40, label_features={"label": None})
    data = open_task(task, dataclasses.replace(settings, cache_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"has label 4\d, outside the task's 40 classes"):
        data.load("train800")
    assert list(tmp_path.iterdir()) == []


def test_truncated_records_are_refused(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "copy")
    (shard,) = (tmp_path / "copy" / "dtd" / "3.0.1").glob("*.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-50])
    data = open_task(DTD, DataSettings(data_dir=str(tmp_path / "copy"), image_size=8))
    with pytest.raises(UserError, match=r"records in .*3\.0\.1 cannot be read"):
        data.load("test")


def test_only_one_process_prepares_at_a_time(tmp_path):
    """Four callers at once: one prepares, the others find its work. Earlier versions wait, too."""
    builder = type(prepare.find_builder(DTD, str(tmp_path)).builder)
    calls = []

    def slow(self, manager):
        lock = (tmp_path / "fact_jax_prepare.lock").open("w")
        with lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        calls.append(manager)
        time.sleep(0.3)
        return {"train": examples()}

    with mock.patch.object(builder, "_split_generators", slow), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare.prepare(DTD, str(tmp_path)), range(4)))
    assert len(calls) == 1
    assert [result.ready for result in results] == [True] * 4


def test_cache_gives_the_same_examples_without_reading_the_records(settings, tmp_path):
    cached = dataclasses.replace(settings, cache_dir=str(tmp_path / "cache"))
    plain = joined(open_task(DTD, settings).stream("val200", 64))
    first = joined(open_task(DTD, cached).stream("val200", 64))
    data = open_task(DTD, cached)
    with mock.patch.object(type(data.source.builder), "as_dataset", side_effect=AssertionError):
        second = joined(data.stream("val200", 33))
        with pytest.raises(AssertionError):  # other keys are other entries
            list(data.stream("val200", 64, limit=20))
        with pytest.raises(AssertionError):
            list(data.stream("test", 64))
    for images, labels in (first, second):
        np.testing.assert_array_equal(images, plain[0])
        np.testing.assert_array_equal(labels, plain[1])
    jpeg = dataclasses.replace(cached, jpeg_quality=30)
    assert np.any(joined(open_task(DTD, jpeg).stream("val200", 64))[0] != plain[0])
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", lambda old: old.replace(b"'shape': (", b"'shape': [", 1)),
        ("images.npy", lambda old: b"\x93NUMPY\x01\x00v\x00" + b"(" * 118),
        ("images.npy", lambda old: old[:-1000]),
        ("labels.npy", lambda old: b"PK\5\6" + bytes(18)),
        ("labels.npy", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        ("labels.npy", os.mkfifo),
        ("record.json", lambda old: b"[" * 100_000),
        ("record.json", lambda old: b"[]"),
        ("record.json", lambda old: b"\xff"),
        ("record.json", lambda old: b"{"),
        ("record.json", None),
    ],
)
def test_corrupt_cache_is_built_again_with_a_warning(name, damage, settings, tmp_path):
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path)))
    before = data.load("test")
    (entry,) = tmp_path.iterdir()
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    if damage is os.mkfifo:
        os.mkfifo(entry / name)
    elif damage:
        (entry / name).write_bytes(damage(content))
    with pytest.warns(UserWarning, match=r"is corrupt \((?!list indices)"):
        after = data.load("test")
    np.testing.assert_array_equal(before.images, after.images)
    np.testing.assert_array_equal(before.labels, after.labels)
    assert list(tmp_path.iterdir()) == [entry]


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda entry, other: entry.write_bytes(b"sun"), ""),
        (lambda entry, other: entry.symlink_to(other), "holiday.jpg"),
        (lambda entry, other: entry.symlink_to("nowhere"), None),
        (lambda entry, other: os.mkfifo(entry), None),
        (lambda entry, other: (entry / "images.npy").mkdir(parents=True), None),
        (lambda entry, other: other.rename(entry), "holiday.jpg"),
    ],
    ids=["file", "link", "dangling", "fifo", "folder", "holiday"],
)
def test_what_lies_in_the_place_of_an_entry_is_moved_aside(make, kept, settings, tmp_path):
    """Its content is not ours, so that nothing of it is deleted."""
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path / "cache")))
    before = data.load("test")
    (entry,) = (tmp_path / "cache").iterdir()
    shutil.rmtree(entry)
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"sun")
    (other / "record.json").write_text("{")
    make(entry, other)
    with pytest.warns(UserWarning, match="is corrupt .* What was there is now .*set-aside-"):
        after = data.load("test")
    np.testing.assert_array_equal(before.images, after.images)
    (aside,) = (tmp_path / "cache").glob("set-aside-*")
    assert kept is None or (aside / kept).read_bytes() == b"sun"
    assert data.load("test").labels.tolist() == after.labels.tolist()  # without a warning


def test_who_is_later_with_an_entry_has_the_examples_too(tmp_path):
    images, labels = np.full((4, 2, 2, 3), 7, np.uint8), np.arange(4, dtype=np.int32)

    def cached(build):
        return cache.cached(tmp_path, {"task": "t", "split": "test"}, 4, 2, build)

    def build_while_another_does():
        cached(lambda: [cache.Examples(images, labels)])
        return [cache.Examples(images, labels)]

    result = cached(build_while_another_does)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.labels, labels)
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_that_find_the_same_damage_all_have_the_examples(tmp_path, monkeypatch):
    """Whoever is late puts away what another has built again."""
    images, labels = np.full((4, 2, 2, 3), 7, np.uint8), np.arange(4, dtype=np.int32)
    key = {"task": "t", "split": "test"}
    args = (tmp_path, key, 4, 2, lambda: [cache.Examples(images, labels)])
    cache.cached(*args)
    (entry,) = tmp_path.iterdir()
    (entry / "record.json").write_text("{")
    together, rename = threading.Barrier(3, timeout=60), Path.rename

    def put_away(folder):
        together.wait()  # all have found the damage
        return cache_put_away(folder)

    def rename_and_lose(path, target):
        rename(path, target)
        if target == entry:
            cache_put_away(entry)

    cache_put_away = cache._put_away
    monkeypatch.setattr(cache, "_put_away", put_away)
    monkeypatch.setattr(Path, "rename", rename_and_lose)
    with ThreadPoolExecutor(3) as pool, pytest.warns(UserWarning, match="is corrupt"):
        results = list(pool.map(lambda _: cache.cached(*args), range(3)))
    for result in results:
        np.testing.assert_array_equal(result.images, images)
        np.testing.assert_array_equal(result.labels, labels)


def test_unwritable_cache_is_refused(settings, tmp_path):
    (tmp_path / "file").write_text("")
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path / "file")))
    with pytest.raises(UserError, match="Cannot write the decoded split"):
        data.load("test")


@pytest.mark.parametrize("name", ["cifar", "diabetic_retinopathy", "clevr_dist", "kitti"])
def test_tasks_run_on_mock_data(name):
    data = open_task(VTAB[name], DataSettings(mock=True, image_size=16))
    batch = data.load("train800", limit=5)
    assert batch.images.shape == (5, 16, 16, 3)
    assert np.all((batch.labels >= 0) & (batch.labels < VTAB[name].num_classes))
    assert len({image.tobytes() for image in batch.images}) == 5
    assert data.provenance["mock"]
    assert (data.class_names is None) == (name in ("clevr_dist", "kitti"))  # by a formula
    sized = open_task(VTAB[name], DataSettings(mock=True, image_size=8, mock_examples=70))
    assert sized.size("test") == len(sized.load("test").labels) == 70
    assert len(sized.load("test", limit=90).labels) == 90


@pytest.mark.parametrize("name", ["clevr_count", "dsprites_ori"])
def test_the_callers_own_mock_data_are_used_and_recorded(name):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=6):
        data = open_task(VTAB[name], DataSettings(image_size=8))
        assert data.load("test").images.shape == (6, 8, 8, 3)
        assert data.provenance["mock"]


def test_importing_the_data_room_and_commands_does_not_import_tensorflow():
    """tests/data/test_folders.py trains without it."""
    code = "import sys, fact_jax.cli.data, fact_jax.cli.vtab; print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_command_line_shows_states_and_fails_where_a_task_is_not_ready(data_dir, capsys):
    from fact_jax.cli.data import show

    tasks = [DTD, VTAB["sun397"], VTAB["resisc45"], VTAB["kitti"], get_task("digits")]
    assert not show(tasks, data_dir, prepare_first=False)
    text = capsys.readouterr().out
    for words in ("ready", "dead", "manual", "missing", "2 of 5 tasks are ready"):
        assert words in text
    assert show([DTD], data_dir, prepare_first=True)  # nothing is left to do
    assert not show([VTAB["resisc45"], VTAB["dtd"], DTD], data_dir, prepare_first=True)
    text = capsys.readouterr().out
    assert "needs files that TFDS cannot download" in text
    assert "cannot be taken from" in text  # the sizes are not VTAB's
    assert "1 of 3 tasks are ready" in text
