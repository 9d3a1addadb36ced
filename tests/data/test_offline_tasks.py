"""The offline suite: its builders, its splits, its sprites."""

import functools
import hashlib
import itertools
import sys

import numpy as np
import pytest

from fact_jax.cli.data import inspect
from fact_jax.data import VTAB, DataSettings, TaskData, get_task, open_task
from fact_jax.data.offline import sprites
from fact_jax.data.sources import prepare
from fact_jax.data.sources.tfds import TfdsSource
from fact_jax.data.tables.offline import OFFLINE
from fact_jax.errors import UserError

SIDES = {
    **{"digits": 8, "fashion": 28, "emoji": 48, "textile": 32, "script": 48, "location": 64},
    **{"count": 64, "azimuth": 64},  # orientation and distance have the pictures of others
}
DRAWN = {"count", "azimuth"}  # slowly: test_offline_suite.py looks at their splits
TFDS = ("digits", "emoji", "location")  # grey, coloured, and labels by a formula


@functools.cache
def examples_of(name):
    """{split: Examples at the native size}."""
    data = open_task(OFFLINE[name], DataSettings(data_dir="/none", image_size=SIDES[name]))
    return {split: data.load(split) for split in OFFLINE[name].splits}


@pytest.mark.parametrize(
    "name",
    [n if n in TFDS else pytest.param(n, marks=pytest.mark.slow) for n in SIDES if n != "fashion"],
)
def test_tfds_gives_the_same_pixels_labels_order_and_fingerprint(name, tmp_path):
    """It did so when the first three tasks were read through it."""
    task = OFFLINE[name]
    found = prepare.prepare(task, str(tmp_path))
    source = TfdsSource(task, found, mocked=False)
    data = TaskData(task, source, DataSettings(image_size=SIDES[name]))
    for split in task.splits:
        for ours, theirs in zip(examples_of(name)[split], data.load(split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    ours = open_task(task, DataSettings(data_dir="/none"))
    for key in ("used_version", "fingerprint", "splits", "task", "builder"):
        assert ours.provenance[key] == data.provenance[key]
    assert ours.class_names == data.class_names


def test_a_copy_that_tfds_prepared_earlier_keeps_its_fingerprint(tmp_path):
    record = tmp_path / "offline_digits" / "1.0.0" / "dataset_info.json"
    record.parent.mkdir(parents=True)
    record.write_text("of another TFDS")
    data = open_task(OFFLINE["digits"], DataSettings(data_dir=str(tmp_path)))
    assert data.provenance["fingerprint"] == hashlib.sha256(b"of another TFDS").hexdigest()[:16]


def test_without_tfds_offline_tasks_are_read_and_others_name_the_extra(monkeypatch, tmp_path):
    for name in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    settings = DataSettings(data_dir=str(tmp_path), image_size=8)
    assert len(open_task(get_task("digits_2shot"), settings).load("train-seed0").labels) == 20
    assert inspect(get_task("location"), str(tmp_path))[0] == "ready"
    for call in (
        lambda: open_task(VTAB["dtd"], settings),
        lambda: open_task(VTAB["dtd"], DataSettings(mock=True)),
        lambda: open_task(get_task("food101_1shot"), settings),
        lambda: prepare.prepare(VTAB["dtd"], str(tmp_path)),
    ):
        with pytest.raises(UserError, match=r"tensorflow_datasets .*install 'fact-jax\[tfds\]'"):
            call()
    assert "fact-jax[tfds]" in inspect(VTAB["dtd"], str(tmp_path))[3]


@pytest.mark.parametrize("name", sorted(SIDES.keys() - DRAWN))
def test_splits_have_the_promised_sizes_every_class_and_each_picture_once(name):
    task, splits = OFFLINE[name], examples_of(name)
    assert get_task(name) is task
    assert (task.offline, task.group) == (True, "offline")
    assert {s: len(e.images) for s, e in splits.items()} == task.sizes
    for split in ("train800", "train800val200", "test"):
        assert set(splits[split].labels) == set(range(task.num_classes))
    train, val, test = (splits[split].images for split in ("train800", "val200", "test"))
    np.testing.assert_array_equal(splits["train800val200"].images, np.concatenate([train, val]))
    everything = [image.tobytes() for image in (*train, *val, *test)]
    assert len(everything) == len(set(everything)) == 1000 + task.test_size


def test_digits_are_scikit_learns_in_the_files_order():
    from sklearn.datasets import load_digits

    digits = load_digits()
    truth = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): (i, label)
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True))
    }
    for split, rows in (("train800", (0, 800)), ("val200", (800, 1000)), ("test", (1000, 1797))):
        images, labels = examples_of("digits")[split]
        found = [truth[image[..., 0].tobytes()] for image in images]
        assert sorted(i for i, _ in found) == list(range(*rows))
        assert [label for _, label in found] == labels.tolist()


def test_location_labels_are_where_the_sprite_is():
    """The centre of mass, an independent measure, lies within a pixel and a half of its bin."""
    images, labels = examples_of("location")["test"]
    assert set(np.unique(images)) == {0, 255}
    weight = (images[..., 0] > 0).astype(float)
    mass_x = (weight.sum(1) * (np.arange(64) + 0.5)).sum(1) / weight.sum((1, 2))
    middle_of_bin = 12 + (2 * labels + 0.5) * 40 / 31
    assert np.abs(mass_x - middle_of_bin).max() < 1.5


def test_the_latents_are_all_combinations_in_dsprites_order():
    total = int(np.prod(list(sprites.FACTORS.values())))
    assert total == 737_280
    assert list(sprites.latents(0).values()) == [0, 0, 0, 0, 0]
    assert list(sprites.latents(total - 1).values()) == [2, 5, 39, 31, 31]
    assert list(sprites.latents(33).values()) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("shape", "area"), [(0, 2 * 11**2), (1, np.pi * 11**2 / 2), (2, None)])
def test_sprites_are_whole_and_of_their_size(shape, area):
    """Square and ellipse: 2 R^2 and pi R^2 / 2 pixels for a farthest point R = 11 pixels away."""
    areas = np.array(
        [[sprites.draw(shape, scale, o, 16, 16).sum() for o in range(40)] for scale in range(6)]
    ).mean(axis=1)
    assert area is None or areas[-1] == pytest.approx(area, rel=0.02)
    expected = [(0.5 + 0.1 * scale) ** 2 for scale in range(6)]
    np.testing.assert_allclose(areas / areas[-1], expected, rtol=0.03)
    for orientation, corner in itertools.product(range(40), (0, 31)):
        image = sprites.draw(shape, 5, orientation, corner, corner)[..., 0]
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert not border.any()
    first, last = (sprites.draw(shape, 5, o, 10, 20) for o in (0, 39))
    np.testing.assert_array_equal(first, last)  # a full turn
