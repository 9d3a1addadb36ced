"""Folders of images with NOAH's, CoOp's and Aircraft's own lists."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.data.sources import prepare
from fact_jax.errors import UserError
from fact_jax.text import first_ten

NAMES = ("Abyssinian", "american_bulldog", "american_pit_bull_terrier")
SIZES = {"train": 15, "val": 6, "test": 9}


def small(name, num_classes=3, list_sizes=SIZES):
    """A task of three classes, whose lists are short."""
    task = get_task(name)
    few_shot = dataclasses.replace(task.few_shot, list_sizes=list_sizes)
    return dataclasses.replace(task, num_classes=num_classes, few_shot=few_shot)


PETS, CARS = small("oxford_pets_2shot"), small("stanford_cars_2shot")


def make_images(folder, names):
    """Flat pictures: the one of number i has the value i."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 9, 3), value, np.uint8)).save(folder / name, "PNG")


def rows(split, count, first):
    """Lines of one list: (file name, class), the classes in turn, numbers from `first` on."""
    return [(f"{NAMES[i % 3]}_{first + i}.jpg", i % 3) for i in range(count)]


SPLITS = {"train": rows("train", 15, 0), "val": rows("val", 6, 15), "test": rows("test", 9, 21)}
ALL = [name for lines in SPLITS.values() for name, _ in lines]


def write_noah(folder, lists):
    """Lists as in NOAH's repository: 'Abyssinian_185.jpg 0' a line."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        text = "".join(f"{path} {label}\n" for path, label in lines)
        (folder / "annotations" / name).write_text(text)


def noah_lists():
    """The lists of two seeds of 2 shots, and those of val and test."""
    few = {f"train_meta.list.num_shot_2.seed_{s}": SPLITS["train"][6 * s :][:6] for s in (0, 1)}
    return few | {"val_meta.list": SPLITS["val"], "test_meta.list": SPLITS["test"]}


@pytest.fixture
def noah(tmp_path):
    folder = tmp_path / "oxford_pets"
    write_noah(folder, noah_lists())
    make_images(folder / "images", ALL)
    return folder


@pytest.fixture
def coop(tmp_path):
    folder = tmp_path / "oxford_pets"
    make_images(folder / "images", ALL)
    content = {s: [[p, n, NAMES[n].lower()] for p, n in lines] for s, lines in SPLITS.items()}
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(content))
    return folder


def opened(folder, task=PETS, **settings):
    settings = {"image_size": 8} | settings
    return open_task(task, DataSettings(data_dir=str(folder.parent), **settings))


def read(data, split):
    """The rows of a split in order, as (number of the picture, class)."""
    images, labels = data.load(split)
    assert images.shape == (data.size(split), 8, 8, 3)
    return [(int(i.mean()), int(n)) for i, n in zip(images, labels, strict=True)]


def truth(lines):
    return [(ALL.index(name), label) for name, label in lines]


def test_noahs_lists_are_read_as_they_are(noah, monkeypatch):
    monkeypatch.setattr(prepare, "find_builder", lambda *args: pytest.fail("TFDS was asked"))
    data = opened(noah)
    for seed in (0, 1):
        expected = truth(noah_lists()[f"train_meta.list.num_shot_2.seed_{seed}"])
        assert read(data, f"train-seed{seed}") == expected
    assert read(data, "val") == truth(SPLITS["val"])
    assert read(data, "test") == truth(SPLITS["test"])
    record = data.provenance
    assert json.loads(json.dumps(record)) == record
    expected = {"task": "oxford_pets_2shot", "builder": "folder", "used_version": "noah"}
    expected |= {"data_dir": str(noah), "mock": False, "shots": 2, "mapped": False}
    assert expected.items() <= record.items()
    assert record["split_source"].startswith(f"NOAH's lists in {noah}")
    assert data.class_names is None
    with pytest.raises(UserError, match=r"num_shot_2\.seed_2; it has those of train-seed0, train"):
        data.load("train-seed2")


def test_lists_that_hold_every_image_twice_stay_so(noah):
    """The lists of Pets at 1 shot do: 74 lines for 37 images."""
    twice = [line for line in SPLITS["train"][:3] for _ in range(2)]
    write_noah(noah, {"train_meta.list.num_shot_1.seed_0": twice})
    data = opened(noah, small("oxford_pets_1shot"))
    assert read(data, "train-seed0") == truth(twice)
    assert len(data.views("train-seed0", 0)) == 6


def test_shots_without_a_list_are_not_drawn_in_secret(noah, coop):
    """NOAH's lists go before CoOp's in the same folder, which are drawn from."""
    assert opened(noah).provenance["used_version"] == "noah"
    threes = small("oxford_pets_3shot")
    assert opened(noah, threes).provenance["split_source"].startswith("CoOp's lists")
    (coop / "split_zhou_OxfordPets.json").unlink()
    with pytest.raises(UserError, match=r"none named train_meta\.list\.num_shot_3\.seed_S"):
        opened(noah, threes)


def test_coops_lists_are_read_and_drawn_from(coop):
    # The archive of Pets has a folder with the name that NOAH's lists have.
    (coop / "annotations").mkdir()
    (coop / "annotations" / "test.txt").write_text("Abyssinian_201 1 1 1\n")
    data = opened(coop)
    assert read(data, "val") == truth(SPLITS["val"])
    assert read(data, "test") == truth(SPLITS["test"])
    assert data.class_names == [name.lower() for name in NAMES]
    pairs = read(data, "train-seed0")
    assert np.bincount([label for _, label in pairs]).tolist() == [2, 2, 2]
    assert set(pairs) <= set(truth(SPLITS["train"]))
    assert data.provenance["used_version"] == "coop"
    assert "2 images a class drawn from its train list" in data.provenance["split_source"]
    with pytest.raises(UserError, match="has 5 images of class abyssinian, fewer than the 6"):
        opened(coop, small("oxford_pets_6shot")).load("train-seed0")
    (coop / "images" / SPLITS["train"][4][0]).unlink()  # whether it is drawn or not
    with pytest.raises(UserError, match=r"name 30 images; 1 of them are not in .*bulldog_4\.jpg"):
        opened(coop)


def test_the_official_aircraft_lists_are_read(tmp_path):
    task, folder = small("fgvc_aircraft_2shot"), tmp_path / "fgvc-aircraft-2013b" / "data"
    folder.mkdir(parents=True)
    variants = ["707-320", "BAE 146-200", "F-16A/B"]
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    numbers = {name: f"{1000000 + i:07d}" for i, name in enumerate(ALL)}
    for split, lines in SPLITS.items():
        text = "".join(f"{numbers[name]} {variants[label]}\n" for name, label in lines)
        (folder / f"images_variant_{split}.txt").write_text(text)
    make_images(folder / "images", [f"{number}.jpg" for number in numbers.values()])
    data = opened(folder.parent, task)
    assert read(data, "test") == truth(SPLITS["test"])
    assert read(data, "val") == truth(SPLITS["val"])
    assert set(read(data, "train-seed0")) <= set(truth(SPLITS["train"]))
    assert data.class_names == variants
    assert data.provenance["used_version"] == "official"
    (folder / "images_variant_val.txt").write_text("1000000 707-321\n")
    with pytest.raises(UserError, match=r"line 1: '707-321' is not in variants\.txt"):
        opened(folder.parent, task)


@pytest.mark.parametrize(
    ("task", "folder", "images"),
    [
        (PETS, "oxford-pets", "images"),
        (small("oxford_flowers_2shot"), "oxford_flowers", "jpg"),
        (small("oxford_flowers_2shot"), "oxford-flowers102", "images"),
        (small("food101_2shot"), "food-101", "images"),
        (small("food101_2shot"), "food101", "images"),
        (CARS, "stanford_cars", "."),
        (CARS, "standford-cars", "."),
    ],
)
def test_the_folders_that_people_have_are_found(task, folder, images, tmp_path):
    """Names of pictures may hold folders and spaces."""
    lists = {k: [(f"a b/{p}", n) for p, n in lines] for k, lines in noah_lists().items()}
    write_noah(tmp_path / folder, lists)
    make_images(tmp_path / folder / images / "a b", ALL)
    data = opened(tmp_path / folder, task)
    assert read(data, "test") == truth(SPLITS["test"])


def test_a_changed_image_or_label_changes_fingerprint_and_cache(noah, tmp_path):
    cache, path = tmp_path / "cache", noah / "images" / SPLITS["test"][0][0]
    before = opened(noah, cache_dir=str(cache))
    before.load("val")
    before.load("test")
    path.write_bytes((noah / "images" / ALL[0]).read_bytes() + b" ")
    after = opened(noah, cache_dir=str(cache))
    assert after.provenance["fingerprint"] != before.provenance["fingerprint"]
    assert read(after, "test")[0] == (0, 0)
    after.load("val")
    assert len(list(cache.iterdir())) == 3  # val is what it was
    write_noah(noah, {"val_meta.list": SPLITS["val"][::-1]})
    assert read(opened(noah, cache_dir=str(cache)), "val") == truth(SPLITS["val"][::-1])


def test_draws_of_another_numpy_are_cached_apart(coop, tmp_path, monkeypatch):
    settings = {"cache_dir": str(tmp_path / "cache")}
    for version, entries in (("2.4.6", 2), ("2.4.6", 2), ("9.0.0", 3)):
        monkeypatch.setattr(np, "__version__", version)
        opened(coop, **settings).load("train-seed0")
        opened(coop, **settings).load("val")  # not drawn
        assert len(list((tmp_path / "cache").iterdir())) == entries


def test_views_come_from_the_files_which_are_read_once(noah):
    data = opened(noah)
    first = data.views("train-seed1", 0)
    for name in ALL:
        (noah / "images" / name).unlink()
    np.testing.assert_array_equal(data.views("train-seed1", 0), first)
    with pytest.raises(UserError, match="cannot be read"):
        data.load("val")


def test_a_damaged_image_is_named(noah):
    name = SPLITS["train"][1][0]
    data = opened(noah)
    (noah / "images" / name).write_bytes(b"\x89PNG")
    for call in (lambda: data.load("train-seed0"), lambda: data.views("train-seed0", 0)):
        with pytest.raises(UserError, match=rf"image {name} in .*images cannot be decoded") as e:
            call()
        assert "Put a sound copy in its place" in str(e.value)


VAL = SPLITS["val"][:5]  # and a sixth line


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"test_meta.list": SPLITS["test"][:-1]}, "have 8 images for test, expected 9"),
        ({"val_meta.list": []}, "have 0 images for val, expected 6"),
        ({"train_meta.list.num_shot_2.seed_1": []}, "have 0 images for train-seed1"),
        ({"val_meta.list": [*VAL, (ALL[15], 3)]}, "the class 3, outside the 3"),
        *(
            ({"val_meta.list": [*VAL, line]}, "val_meta.list, line 6")
            for line in (*((ALL[15], n) for n in ("x", -1, "²", "1" * 5000)), ("a\0b", 0))
        ),
        ({"val_meta.list": [*VAL, ("/etc/x.jpg", 0)]}, "leads out of the folder"),
        ({"val_meta.list": [*VAL, ("a/../../x.jpg", 0)]}, "leads out of the folder"),
        ({"val_meta.list": [*VAL, VAL[0]]}, "twice in val: entries 1 and 6"),
        (
            {"train_meta.list.num_shot_2.seed_0": [SPLITS["train"][0], (ALL[0], 1)]},
            "two classes: entry 2 of train-seed0",
        ),
        ({"val_meta.list": SPLITS["test"][:6]}, "6 images both in val and in test"),
        ({"train_meta.list.num_shot_2.seed_0": SPLITS["test"][3:5]}, "both in train-seed0 and"),
        ({"val_meta.list": [*VAL, ("link.jpg", 0)]}, "1 images both in val and in test"),
        ({"val_meta.list": [*VAL, ("none.jpg", 0)]}, "1 of them are not in"),
        ({"test_meta.list": [("none.jpg", 0), *SPLITS["test"][1:]]}, "images that are not there"),
    ],
)
def test_faulty_lists_are_refused(lists, words, noah):
    (noah / "images" / "link.jpg").symlink_to(SPLITS["test"][0][0])
    write_noah(noah, lists)
    with pytest.raises(UserError) as error:
        opened(noah)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"train": []}', '{"train": [["a", 0]]}', "[" * 100_000, '{"train": 1e999}'),
        *(
            f'{{"train": [{entry}], "val": [], "test": []}}'
            for entry in (
                *('["a", "²", "n"]', '["a", -1, "n"]', '["a", Infinity, "n"]', '["a", 1.5, "n"]'),
                *('["a", ' + "1" * 5000 + ', "n"]', '["\\ud800", 0, "n"]', '["/a", 0, "n"]'),
                *('["../a", 0, "n"]', '["a\\u0000", 0, "n"]', '[1, 0, "n"]', '["a", true, "n"]'),
            )
        ),
    ],
)
def test_a_faulty_json_is_refused(content, coop):
    (coop / "split_zhou_OxfordPets.json").write_text(content)
    with pytest.raises(UserError, match=r"OxfordPets\.json: expected train, val and test"):
        opened(coop)


def test_a_list_that_is_not_utf8_or_missing_or_a_fifo_is_named(noah):
    path = noah / "annotations" / "val_meta.list"
    path.write_bytes(path.read_bytes() + b"caf\xe9.jpg 0\n")
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read: line 7 is not UTF-8"):
        opened(noah)
    path.unlink()
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read"):
        opened(noah)
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read \(it is a FIFO"):
        opened(noah)


def test_damaged_images_are_left_out_where_asked(coop):
    name = SPLITS["train"][0][0]
    (coop / "images" / name).write_bytes(b"damaged")
    data = opened(coop, small("oxford_pets_4shot"), skip_damaged=True)
    assert data.provenance["skipped_names"] == [name]
    assert len(read(data, "train-seed0")) == 12
    assert (int(ALL.index(name)), 0) not in read(data, "train-seed0")


def test_missing_images_are_named_up_to_ten(noah):
    for name, _ in (*SPLITS["test"][1:], *SPLITS["val"]):
        (noah / "images" / name).unlink()
    with pytest.raises(UserError, match=r"14 of them .*images: (\S+; ){10}and 4 more\. Complete"):
        opened(noah)
    assert first_ten(["a\x1b", "b" * 10_000]) == f"a\\x1b; {'b' * 500}"
