"""Few-shot tasks through TFDS: names, what is drawn, views, the cache, mock data, errors."""

import dataclasses
import json
import pickle
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fact_jax.data import VTAB, DataSettings, get_task, open_task
from fact_jax.data.shots import draw
from fact_jax.data.sources import prepare
from fact_jax.data.sources.tfds import TfdsSource
from fact_jax.data.tables.fewshot import FEW_SHOT
from fact_jax.errors import UserError
from fact_jax.images import augment


# Food-101 in little: 3 images a class are kept for val, 5 are left to draw from.
def little_food(shots):
    task = get_task(f"food101_{shots}shot")
    few_shot = dataclasses.replace(task.few_shot, held_out=3)
    return dataclasses.replace(task, few_shot=few_shot, sizes={"train": 808, "test": 101})


ONE, FOOD, FIVE, SIX = map(little_food, (1, 2, 5, 6))


def examples(count, seed):
    """Flat pictures of random colours; the classes come in a random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 101)
    for i in range(count):
        yield (
            i,
            {"image": np.full((9, 7, 3), rng.integers(0, 256, 3), np.uint8), "label": labels[i]},
        )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """TFDS's Food-101, prepared from 808 and 101 pictures."""
    root = str(tmp_path_factory.mktemp("tfds"))
    builder = type(prepare.find_builder(FOOD, root).builder)
    splits = {"train": examples(808, 0), "validation": examples(101, 1)}
    with mock.patch.object(builder, "_split_generators", return_value=splits):
        prepare.prepare(FOOD, root)
    return root


@pytest.fixture
def settings(data_dir):
    return DataSettings(data_dir=data_dir, image_size=8)


def pairs(loaded):
    return {(image.tobytes(), int(label)) for image, label in zip(*loaded, strict=True)}


def test_names_give_the_set_and_the_shots():
    sizes = {"food101": 101, "stanford_cars": 196, "oxford_flowers": 102, "fgvc_aircraft": 100}
    sizes |= {"oxford_pets": 37, "digits": 10, "fashion": 10, "location": 16}
    for name, classes in sizes.items():
        for shots in (1, 16, 3):
            task = get_task(f"{name}_{shots}shot")
            found = (task.name, task.group, task.dataset, task.few_shot.shots, task.num_classes)
            assert found == (f"{name}_{shots}shot", "fewshot", name, shots, classes)
    assert set(FEW_SHOT) < set(sizes)
    for sent in (*VTAB.values(), task):
        assert pickle.loads(pickle.dumps(sent)).splits == sent.splits  # to another process


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("food101_4shots", "Did you mean 'food101_4shot'"),
        ("stanford_car_16shot", "Did you mean 'stanford_cars_16shot'"),
        ("oxford_flower_4shot", "Did you mean 'oxford_flowers_4shot'"),
        ("dtd_4shot", "NAME_Kshot, K at least 1, where NAME is one of food101, stanford_cars"),
        ("dtdd", "Did you mean 'dtd'"),
        ("folder_../secrets", "letters of ASCII"),
        ("folder_my flowers", "letters of ASCII"),
        ("food101_0shot", "must be at least 1"),
        ("food101_04shot", "There is no task"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        get_task(name)
    assert words in str(error.value)


def test_a_draw_has_k_of_each_class_and_those_of_fewer_shots():
    labels = np.random.default_rng(0).integers(0, 7, 300)
    draws = [draw(labels, 7, shots, 0, "x") for shots in (1, 2, 16)]
    for shots, rows in zip((1, 2, 16), draws, strict=True):
        assert np.bincount(labels[rows], minlength=7).tolist() == [shots] * 7
        assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(draws[0]) < set(draws[1]) < set(draws[2])
    assert not np.array_equal(draws[2], draw(labels, 7, 16, 1, "x"))
    # Another numpy that draws otherwise would change results without a word.
    assert draw([0, 1, 2] * 20, 3, 2, 0, "x").tolist() == [12, 23, 34, 35, 49, 57]
    for classes, shots, words in ((3, 2, "1 images of class 2, fewer than the 2"), (4, 1, "0 im")):
        with pytest.raises(UserError, match=f"list has {words}"):
            draw([0, 0, 1, 1, 2], classes, shots, 0, "list")


def test_lists_are_drawn_from_train_without_what_val_keeps(settings):
    plain = dataclasses.replace(FOOD, few_shot=None, splits={"all": "train", "test": "validation"})
    whole = pairs(open_task(plain, settings).load("all"))
    assert len(whole) == 808
    data = open_task(FOOD, settings)
    assert data.class_names[:2] == ["apple_pie", "baby_back_ribs"]
    assert pairs(data.load("test")) == pairs(open_task(plain, settings).load("test"))
    val = data.load("val")
    assert np.bincount(val.labels).tolist() == [3] * 101
    assert pairs(val) <= whole
    seen = []
    for seed in range(4):
        train = data.load(f"train-seed{seed}")
        assert np.bincount(train.labels).tolist() == [2] * 101
        assert pairs(train) <= whole - pairs(val)
        seen.append(pairs(train))
    assert len(set.union(*seen)) > 101 * 2.5  # of 5 that can be drawn, others with each seed
    fives = open_task(FIVE, settings)
    assert pairs(fives.load("val")) == pairs(val)
    assert pairs(fives.load("train-seed3")) == whole - pairs(val)
    with pytest.raises(UserError, match="kept for val, has 5 images of class apple_pie.* the 6 as"):
        open_task(SIX, settings).load("train-seed0")


def test_sizes_limits_and_streams_agree(settings):
    data = open_task(FOOD, settings)
    for split, size in (("train-seed0", 202), ("val", 303), ("test", 101)):
        whole = data.load(split)
        assert data.size(split) == len(whole.labels) == size
        assert data.size(split, 20) == 20
        np.testing.assert_array_equal(data.load(split, 20).images, whole.images[:20])
        batches = list(data.stream(split, 64))
        assert len(batches[-1].labels) == size % 64
        np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), whole.images)
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), whole.labels)


def test_labels_are_read_without_the_images_and_once(settings):
    data, read, examples_of = open_task(FOOD, settings), [], TfdsSource._examples

    def watched(*args, **kwargs):
        for example in examples_of(*args, **kwargs):
            read.append(set(example))
            yield example

    with mock.patch.object(TfdsSource, "_examples", watched):
        data.load("train-seed0")
        data.load("train-seed1")
    assert read[:808] == [{"label"}] * 808
    assert all("image" in names for names in read[808:])


@pytest.mark.parametrize("split", ["train", "train-seed", "train-seed-1", "train800", "seed0"])
def test_other_splits_are_refused(split, settings):
    with pytest.raises(UserError, match="it has train-seed0, train-seed1 and so on, val and test"):
        open_task(FOOD, settings).load(split)


def test_provenance_is_json_and_says_how_the_lists_were_drawn(settings):
    record = open_task(FOOD, dataclasses.replace(settings, resize="crop")).provenance
    assert json.loads(json.dumps(record)) == record
    expected = {"task": "food101_2shot", "builder": "food101", "used_version": "2.0.0"}
    expected |= {"shots": 2, "mock": False, "image_size": 8, "numpy": np.__version__}
    assert expected.items() <= record.items()
    assert record["fingerprint"]
    assert "not that of CoOp" in record["note"]
    assert "crop" in record["resize"]
    for words in ("2 images a class", "3 images a class of train", "default_rng(seed)"):
        assert words in record["split_source"]


def test_views_are_the_augmented_images_of_the_list(settings):
    data = open_task(FOOD, settings)
    views = data.views("train-seed1", 7)
    assert (views.shape, views.dtype) == ((202, 8, 8, 3), np.uint8)
    flat = data.load("train-seed1").images  # flat pictures: resizing changes nothing
    for i in (0, 5, 201):
        image = Image.fromarray(np.broadcast_to(flat[i, :1, :1], (9, 7, 3)))
        expected = augment.augment(image, 8, np.random.default_rng([1, 7, i]))
        np.testing.assert_array_equal(views[i], expected)


def test_views_depend_on_split_image_and_epoch_alone(tmp_path):
    settings = DataSettings(data_dir=str(tmp_path), image_size=16)
    data = open_task(get_task("fashion_1shot"), settings)
    first = data.views("train-seed0", 0)
    others = [data.views("train-seed0", 1), data.views("train-seed1", 0)]
    assert all((first != other).any(axis=(1, 2, 3)).mean() > 0.8 for other in others)
    threads = dataclasses.replace(settings, num_threads=1)
    again = open_task(get_task("fashion_1shot"), threads)
    again.views("train-seed0", 3)
    np.testing.assert_array_equal(again.views("train-seed0", 0), first)
    np.testing.assert_array_equal(again.views("train-seed0", 0, limit=3), first[:3])


def test_views_read_the_records_once(settings):
    data = open_task(FOOD, settings)
    data.views("train-seed0", 0)
    builder = prepare.find_builder(FOOD, settings.data_dir).builder
    with mock.patch.object(type(builder), "as_dataset", side_effect=AssertionError):
        data.views("train-seed0", 1)
    with pytest.raises(UserError, match="'val' has no augmented views"):
        data.views("val", 0)


def test_cache_is_shared_where_the_images_are_the_same(settings, tmp_path):
    cached = dataclasses.replace(settings, cache_dir=str(tmp_path))
    plain = {s: open_task(FOOD, cached).load(s) for s in ("train-seed0", "val", "test")}
    assert len(list(tmp_path.iterdir())) == 3
    data, single = open_task(FOOD, cached), open_task(ONE, cached)
    cropped = open_task(FOOD, dataclasses.replace(cached, resize="crop"))
    builder = prepare.find_builder(FOOD, settings.data_dir).builder
    with mock.patch.object(type(builder), "as_dataset", side_effect=AssertionError):
        for opened, split in (*((data, s) for s in plain), (single, "val"), (single, "test")):
            for ours, theirs in zip(opened.load(split), plain[split], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        for other, split in ((single, "train-seed0"), (data, "train-seed1"), (cropped, "test")):
            with pytest.raises(AssertionError):
                other.load(split)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_set_runs_on_mock_data(name):
    settings = DataSettings(mock=True, image_size=16, mock_examples=6, resize="crop")
    data = open_task(get_task(f"{name}_16shot"), settings)
    for split in ("train-seed0", "train-seed2", "val", "test"):
        loaded = data.load(split)
        assert loaded.images.shape == (6, 16, 16, 3)
        assert np.all((loaded.labels >= 0) & (loaded.labels < data.task.num_classes))
        assert data.size(split) == 6
    assert data.views("train-seed1", 0).shape == (6, 16, 16, 3)
    assert data.provenance["mock"]
    assert "mocked" in data.provenance["split_source"]
    assert len(data.class_names) == data.task.num_classes


def test_missing_data_give_all_that_a_person_must_do(tmp_path):
    settings = DataSettings(data_dir=str(tmp_path))
    with pytest.raises(UserError) as error:
        open_task(get_task("food101_4shot"), settings)
    command = f"fact-jax data --prepare --tasks=food101_4shot --data_dir={tmp_path}"
    for words in (command, "folder food-101 or food101", "NOAH", "split_zhou_Food101.json"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="source is dead") as error:
        open_task(get_task("stanford_cars_4shot"), settings)
    words = ("cars_train.tgz", "cars_test.tgz", "cars_test_annos_withlabels.mat", "car_devkit.tgz")
    for word in (*words, f"{tmp_path}/downloads/manual", "folder stanford_cars", "split_zhou_Stan"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
