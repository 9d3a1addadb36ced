"""TaskData: streams, limits, the cache, mock data, and what is refused."""

import dataclasses
import fcntl
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest
from run_command import run_command

from fact_jax.data import VTAB, DataSettings, get_task, open_task
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
    batches = list(data.stream("val200", 32))
    assert [len(batch.labels) for batch in batches] == [32, 32, 6]
    images, labels = joined(batches)
    whole = data.load("val200")
    np.testing.assert_array_equal(images, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)
    limited = data.load("val200", limit=10)
    np.testing.assert_array_equal(limited.images, whole.images[:10])
    assert data.size("val200", 10) == 10
    assert data.size("val200", 1000) == 70


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


def test_stream_decodes_ahead_of_its_use(settings, monkeypatch):
    from fact_jax.images import pipeline

    decoded, decode = [], pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda *args: (decoded.append(1), decode(*args))[1])
    stream = open_task(DTD, settings).stream("train800", 10)
    next(stream)
    deadline = time.monotonic() + 5
    while len(decoded) < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(decoded) == 30  # this batch and the next two
    stream.close()


def test_stream_can_be_left_early_and_begun_again(settings):
    data = open_task(DTD, settings)
    first = next(data.stream("train800", 5))
    again = next(data.stream("train800", 5))
    np.testing.assert_array_equal(first.images, again.images)


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


def test_provenance_is_json_and_says_what_was_read(settings):
    import json

    record = open_task(DTD, dataclasses.replace(settings, jpeg_quality=75)).provenance
    assert json.loads(json.dumps(record)) == record
    expected = {"task": "dtd", "builder": "dtd", "used_version": "3.0.1", "mapped": False}
    expected |= {"mock": False, "image_size": 8, "jpeg_quality": 75, "file_format": "tfrecord"}
    assert expected.items() <= record.items()


def test_missing_data_give_the_command_that_prepares_them(tmp_path):
    with pytest.raises(UserError) as error:
        open_task(VTAB["dtd"], DataSettings(data_dir=str(tmp_path)))
    command = f"fact-jax data --prepare --tasks=dtd --data_dir={tmp_path}"
    assert command in str(error.value)
    with pytest.raises(UserError, match="source is dead") as error:
        open_task(VTAB["sun397"], DataSettings(data_dir=str(tmp_path)))
    for words in ("SUN397.tar.gz", "404", f"{tmp_path}/downloads/manual"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resisc45", ["NWPU-RESISC45.rar", "https://1drv.ms"]),
        ("diabetic_retinopathy", ["trainLabels.csv", "https://www.kaggle.com/c/diabetic"]),
    ],
)
def test_manual_files_are_named_with_their_place_and_source(name, words, tmp_path):
    with pytest.raises(UserError) as error:
        open_task(VTAB[name], DataSettings(data_dir=str(tmp_path), download=True))
    folder = tmp_path / "downloads" / "manual"
    for word in [*words, *(str(folder / path) for path in VTAB[name].manual)]:
        assert word in str(error.value)


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


def test_label_outside_the_classes_is_refused(settings):
    task = dataclasses.replace(DTD, num_classes=40, label_features={"label": None})
    with pytest.raises(UserError, match=r"has label 4\d, outside the task's 40 classes"):
        open_task(task, settings).load("train800")


def test_truncated_records_are_refused(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "copy")
    (shard,) = (tmp_path / "copy" / "dtd" / "3.0.1").glob("*.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-50])
    data = open_task(DTD, DataSettings(data_dir=str(tmp_path / "copy"), image_size=8))
    with pytest.raises(UserError, match=r"records in .*3\.0\.1 cannot be read"):
        data.load("test")


def test_only_one_process_prepares_at_a_time(tmp_path):
    """Four callers at once: one prepares, the others find its work."""
    builder = type(prepare.find_builder(DTD, str(tmp_path)).builder)
    calls = []

    def slow(self, manager):
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return {"train": examples()}

    results = []
    with mock.patch.object(builder, "_split_generators", slow):
        threads = [
            threading.Thread(target=lambda: results.append(prepare.prepare(DTD, str(tmp_path))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) == 1
    assert [found.ready for found in results] == [True] * 4


def test_the_lock_is_the_one_that_earlier_versions_wait_for(tmp_path):
    def lock_as_before():
        with (tmp_path / "fact_jax_prepare.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with prepare._lock(str(tmp_path)), pytest.raises(BlockingIOError):
        lock_as_before()
    lock_as_before()


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


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def list_header(path):
    path.write_bytes(path.read_bytes().replace(b"'shape': (", b"'shape': [", 1))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", list_header),
        ("images.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"(" * 118)),
        ("labels.npy", lambda path: path.write_bytes(b"PK\5\6" + bytes(18))),
        ("labels.npy", lambda path: (path.unlink(), os.mkfifo(path))),
        ("record.json", lambda path: path.write_text("[" * 100_000)),
        ("record.json", lambda path: path.write_text("[]")),
        ("record.json", lambda path: path.write_bytes(b"\xff")),
        ("images.npy", cut),
        ("labels.npy", alter),
        ("record.json", lambda path: path.write_text("{")),
        ("record.json", lambda path: path.unlink()),
    ],
)
def test_corrupt_cache_is_built_again_with_a_warning(name, damage, settings, tmp_path):
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path)))
    before = data.load("test")
    (entry,) = tmp_path.iterdir()
    damage(entry / name)
    with pytest.warns(UserWarning, match=r"is corrupt \((?!list indices)"):
        after = data.load("test")
    np.testing.assert_array_equal(before.images, after.images)
    np.testing.assert_array_equal(before.labels, after.labels)
    assert list(tmp_path.iterdir()) == [entry]


@pytest.mark.parametrize("what", ["file", "link", "dangling", "fifo", "folder", "holiday"])
def test_what_lies_in_the_place_of_an_entry_is_moved_aside(what, settings, tmp_path):
    """Its content is not ours, so that nothing of it is deleted."""
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path / "cache")))
    before = data.load("test")
    (entry,) = (tmp_path / "cache").iterdir()
    other = tmp_path / "other"
    if what == "holiday":
        (entry / "holiday.jpg").write_bytes(b"sun")
        (entry / "record.json").write_text("{")
    else:
        shutil.rmtree(entry)
        other.mkdir()
        (other / "holiday.jpg").write_bytes(b"sun")
        {
            "file": lambda: entry.write_bytes(b"sun"),
            "link": lambda: entry.symlink_to(other),
            "dangling": lambda: entry.symlink_to("nowhere"),
            "fifo": lambda: os.mkfifo(entry),
            "folder": lambda: (entry / "images.npy").mkdir(parents=True),
        }[what]()
    with pytest.warns(UserWarning, match="is corrupt .* What was there is now .*set-aside-"):
        after = data.load("test")
    np.testing.assert_array_equal(before.images, after.images)
    (aside,) = (tmp_path / "cache").glob("set-aside-*")
    assert what != "link" or (other / "holiday.jpg").read_bytes() == b"sun"
    assert what != "holiday" or (aside / "holiday.jpg").read_bytes() == b"sun"
    assert data.load("test").labels.tolist() == after.labels.tolist()  # without a warning


def test_unwritable_cache_is_refused(settings, tmp_path):
    (tmp_path / "file").write_text("")
    data = open_task(DTD, dataclasses.replace(settings, cache_dir=str(tmp_path / "file")))
    with pytest.raises(UserError, match="Cannot write the decoded split"):
        data.load("test")


def test_failed_build_leaves_nothing_in_the_cache(settings, tmp_path):
    task = dataclasses.replace(DTD, num_classes=40, label_features={"label": None})
    data = open_task(task, dataclasses.replace(settings, cache_dir=str(tmp_path)))
    with pytest.raises(UserError, match="outside the task's"):
        data.load("train800")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar", "diabetic_retinopathy", "clevr_dist", "kitti"])
def test_tasks_run_on_mock_data(name):
    data = open_task(VTAB[name], DataSettings(mock=True, image_size=16))
    batch = data.load("train800", limit=5)
    assert batch.images.shape == (5, 16, 16, 3)
    assert np.all((batch.labels >= 0) & (batch.labels < VTAB[name].num_classes))
    assert len({image.tobytes() for image in batch.images}) == 5
    assert data.provenance["mock"]
    assert (data.class_names is None) == (name in ("clevr_dist", "kitti"))  # by a formula


def test_mock_data_have_the_size_that_was_asked_for():
    data = open_task(VTAB["eurosat"], DataSettings(mock=True, image_size=8, mock_examples=70))
    assert data.size("test") == len(data.load("test").labels) == 70
    assert len(data.load("test", limit=90).labels) == 90


@pytest.mark.parametrize("name", ["clevr_count", "dsprites_ori"])
def test_the_callers_own_mock_data_are_used_and_recorded(name):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=6):
        data = open_task(VTAB[name], DataSettings(image_size=8))
        assert data.load("test").images.shape == (6, 8, 8, 3)
        assert data.provenance["mock"]


def test_real_data_are_not_recorded_as_mock_after_a_mock(settings):
    open_task(VTAB["svhn"], DataSettings(mock=True, image_size=8)).load("test", limit=2)
    assert not open_task(DTD, settings).provenance["mock"]


def test_tasks_can_be_sent_to_other_processes():
    for name, task in VTAB.items():
        assert pickle.loads(pickle.dumps(task)).splits == task.splits, name


def test_importing_the_data_room_does_not_import_tensorflow():
    code = "import sys, fact_jax.data; print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split()[0] == "False"


def test_command_line_shows_states_and_fails_where_a_task_is_not_ready(data_dir, capsys):
    from fact_jax.cli.data import show

    tasks = [DTD, VTAB["sun397"], VTAB["resisc45"], VTAB["kitti"]]
    assert not show(tasks, data_dir, prepare_first=False)
    text = capsys.readouterr().out
    for words in ("ready", "dead", "manual", "missing", "1 of 4 tasks are ready"):
        assert words in text
    assert show([DTD], data_dir, prepare_first=False)
    assert show([DTD], data_dir, prepare_first=True)  # nothing is left to do
    capsys.readouterr()
    assert not show([VTAB["dtd"]], data_dir, prepare_first=False)  # the sizes are not VTAB's
    text = capsys.readouterr().out
    assert "wrong" in text
    assert "cannot be taken from" in text


def test_command_line_has_the_offline_tasks_and_goes_on_after_a_failure(tmp_path, capsys):
    from fact_jax.cli.data import show

    tasks = [VTAB["resisc45"], get_task("digits")]
    assert not show(tasks, str(tmp_path), prepare_first=True)
    text = capsys.readouterr().out
    assert "needs files that TFDS cannot download" in text
    assert "1 of 2 tasks are ready" in text


def test_command_line_answers_a_wrong_name_in_one_paragraph():
    result = run_command("experiments.data", "--tasks=dtdd")
    assert result.returncode == 2
    assert "Did you mean 'dtd'?" in result.stderr
    assert "Traceback" not in result.stderr
