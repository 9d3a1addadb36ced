"""The vtab-1k folder: what is written is read again, and what is wrong with a folder is said."""

import dataclasses
import io

import numpy as np
import pytest
from etils import epath
from PIL import Image
from run_command import run_command

from fact_jax.cli.data import export, inspect
from fact_jax.data import VTAB, DataSettings, TaskData, get_task, open_task
from fact_jax.data.sources.vtab1k import read_copy, write_copy
from fact_jax.data.tasks import VTAB_STAGES
from fact_jax.errors import UserError
from fact_jax.images import decoder

SIZES = {"train800": 4, "val200": 2, "train800val200": 6, "test": 3}
CIFAR = dataclasses.replace(VTAB["cifar"], sizes=SIZES)


def write(root, task=CIFAR, quality=75, **options):
    """A folder as NOAH's, whose labels are numbers from 0; of noise, which a JPEG copy changes."""
    folder = root / "vtab-1k" / task.name
    for split, size in SIZES.items():
        (folder / "images" / split).mkdir(parents=True)
        paths = [f"images/{split}/{i:06}.jpg" for i in range(size)]
        for i, path in enumerate(paths):
            noise = np.random.default_rng(i).integers(0, 256, (12, 9, 3), np.uint8)
            image = Image.fromarray(noise)
            image.save(folder / path, "JPEG" if quality else "PNG", quality=quality, **options)
        text = "".join(f"{path} {i}\n" for i, path in enumerate(paths))
        (folder / f"{split}.txt").write_text(text)
    return folder


def stored(folder, split):
    """The second picture of a split, as it is stored, at 8 pixels."""
    with Image.open(folder / f"images/{split}/000001.jpg") as image:
        return np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC))


def opened(root, task=CIFAR, **settings):
    return open_task(task, DataSettings(data_dir=str(root), image_size=8, **settings))


@pytest.mark.parametrize("quality", [None, 75])
def test_a_copy_gives_the_arrays_of_its_source(quality, tmp_path):
    """Labels by a formula, pixels of 0 and 1; below, a stored class.

    PNG files hold the originals: a JPEG copy is made of them.
    """
    settings = DataSettings(data_dir=str(tmp_path), image_size=16, jpeg_quality=quality)
    task = get_task("location")
    export([task], str(tmp_path), str(tmp_path / "out"))
    plain = dataclasses.replace(task, binary=False)
    source = read_copy(plain, epath.Path(tmp_path) / "out/vtab-1k/location")
    whole, copy = open_task(task, settings), TaskData(plain, source, settings)
    for split in VTAB_STAGES if quality is None else ("train800",):
        for ours, theirs in zip(copy.load(split), whole.load(split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert (copy.provenance["jpeg_quality"], copy.provenance["note"]) == (quality, "")
    with pytest.raises(UserError, match="has a copy of the task already. Delete it"):
        export([task], str(tmp_path), str(tmp_path / "out"))


def test_an_export_that_fails_names_the_picture_and_leaves_nothing(tmp_path):
    folder = write(tmp_path)
    (folder / "images/test/000002.jpg").write_bytes(b"no picture")
    words = r"images/test/000002\.jpg in .* cannot be decoded"
    with pytest.raises(UserError, match=words):
        export([CIFAR], str(tmp_path), str(tmp_path / "out"))
    assert list((tmp_path / "out" / "vtab-1k").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export([CIFAR], str(tmp_path), str(tmp_path / "file"))


def test_the_command_writes_the_folder_and_asks_where(tmp_path):
    words = ("experiments.data", "--export", "--format", "vtab-1k", "--tasks=digits")
    result = run_command(*words)
    assert result.returncode == 2
    assert "--export needs --out" in result.stderr
    result = run_command(*words, f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "vtab-1k" / "digits"
    assert f"digits: {folder}" in result.stdout
    assert len((folder / "train800val200.txt").read_text().splitlines()) == 1000


def test_a_copy_of_prepared_records_is_read_where_there_are_no_records(tmp_path):
    """Through `open_task`, from TFDS's records and from the folder."""
    from test_data_reading import DTD, prepare_dtd

    prepare_dtd(tmp_path / "tfds")
    export([DTD], str(tmp_path / "tfds"), str(tmp_path / "out"))
    records, copy = opened(tmp_path / "tfds", DTD), opened(tmp_path / "out", DTD)
    assert (records.provenance["builder"], copy.provenance["builder"]) == ("dtd", "folder")
    for split in VTAB_STAGES:
        for ours, theirs in zip(copy.load(split), records.load(split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "out" / "vtab-1k").rename(tmp_path / "tfds" / "vtab-1k")
    assert opened(tmp_path / "tfds", DTD).provenance["builder"] == "dtd"  # records go first


@pytest.mark.parametrize("task", [CIFAR, dataclasses.replace(VTAB["dsprites_loc"], sizes=SIZES)])
@pytest.mark.parametrize("quality", [None, 75])
def test_jpeg_copies_are_read_as_they_are(quality, task, tmp_path):
    """The pixels of dSprites' copies are not taken for zeros and ones."""
    folder = write(tmp_path, task)
    data = opened(tmp_path, task, jpeg_quality=quality)
    record = data.provenance
    assert (record["used_version"], record["jpeg_quality"]) == ("vtab-1k", 75)
    assert record["note"] == "JPEG copies of quality 75, read as they are"
    for split, size in SIZES.items():
        images, labels = data.load(split)
        assert labels.tolist() == list(range(size))
        np.testing.assert_array_equal(images[1], stored(folder, split))
    state, used, test, words = inspect(task, str(tmp_path))
    assert (state, used, test) == ("ready", "vtab-1k", "3")
    assert f"read from the lists in {folder}; JPEG copies of quality 75" in words


def test_copies_of_another_quality_do_not_pass_for_those_of_75(tmp_path):
    write(tmp_path, quality=90)
    assert opened(tmp_path).provenance["jpeg_quality"] == 90
    with pytest.raises(UserError, match="jpeg_quality is 75, but .* JPEG copies of quality 90"):
        opened(tmp_path, jpeg_quality=75)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", qtables=[[7] * 64, [9] * 64])
    assert decoder.jpeg_quality(buffer.getvalue()) == 0


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        ("test", "images/test/000000.jpg 0\n", "have 1 images for test, expected 3"),
        ("val200", "images/val200/000000.jpg 0\nimages/val200/000001.jpg 100\n", "the class 100"),
        ("val200", "images/val200/000000.jpg 0\n../x.jpg 1\n", "line 2.*leads out of"),
        ("val200", "images/val200/000000.jpg 0\nimages/test/000001.jpg 1\n", "both in val"),
        ("val200", "images/val200/000000.jpg 0\nimages/val200/1.jpg\n", "or the class is miss"),
    ],
)
def test_wrong_lists_are_refused(split, text, words, tmp_path):
    (write(tmp_path) / f"{split}.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        opened(tmp_path)
    assert inspect(CIFAR, str(tmp_path))[0] == "wrong"


def test_pictures_of_several_kinds_and_damaged_ones_are_refused(tmp_path):
    folder = write(tmp_path)
    Image.new("RGB", (4, 4)).save(folder / "images/test/000000.jpg", "PNG")
    with pytest.raises(UserError, match="of several kinds"):
        opened(tmp_path)
    (folder / "images/test/000000.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="is damaged"):
        opened(tmp_path)


def test_other_tasks_and_mock_data_do_not_look_for_the_folder(tmp_path):
    for name in ("digits", "digits_1shot"):
        (tmp_path / "vtab-1k" / name).mkdir(parents=True)
        assert opened(tmp_path, get_task(name)).provenance["builder"] == "offline_digits"
    write(tmp_path)
    assert opened(tmp_path, VTAB["cifar"], mock=True).provenance["mock"]


def test_a_task_without_the_splits_is_not_written(tmp_path):
    data = opened(tmp_path, get_task("digits_1shot"))
    with pytest.raises(UserError, match="has no split 'train800'"):
        write_copy(data.task, data.source, epath.Path(tmp_path) / "out")
