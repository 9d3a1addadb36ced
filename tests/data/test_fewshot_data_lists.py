"""Folders of images with NOAH's, CoOp's and Aircraft's own lists."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.errors import UserError
from fact_jax.images import augment
from fact_jax.text import first_ten

NAMES = ("Abyssinian", "american_bulldog", "american_pit_bull_terrier")
SIZES = {"train": 15, "val": 6, "test": 9}


def small(name, num_classes=3, list_sizes=SIZES):
    """A task of three classes, whose lists are short."""
    task = get_task(name)
    few_shot = dataclasses.replace(task.few_shot, list_sizes=list_sizes)
    return dataclasses.replace(task, num_classes=num_classes, few_shot=few_shot)


PETS, CARS = small("oxford_pets_2shot"), small("stanford_cars_2shot")


def make_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 9, 3), value, np.uint8)).save(path, "PNG")  # whatever its name


def make_images(folder, names):
    """Flat pictures: the one of number i has the value i."""
    for value, name in enumerate(names):
        make_image(folder / name, value)


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


def noah_lists(shots=2, seeds=(0, 1)):
    train = SPLITS["train"]
    few = {
        f"train_meta.list.num_shot_{shots}.seed_{seed}": train[6 * seed : 6 * seed + 3 * shots]
        for seed in seeds
    }
    return few | {"val_meta.list": SPLITS["val"], "test_meta.list": SPLITS["test"]}


def write_coop(folder, splits=SPLITS, name="split_zhou_OxfordPets.json"):
    folder.mkdir(parents=True, exist_ok=True)
    content = {s: [[p, n, NAMES[n].lower()] for p, n in lines] for s, lines in splits.items()}
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def noah(tmp_path):
    folder = tmp_path / "oxford_pets"
    write_noah(folder, noah_lists())
    make_images(folder / "images", ALL)
    return folder


@pytest.fixture
def coop(tmp_path):
    folder = tmp_path / "oxford_pets"
    write_coop(folder)
    make_images(folder / "images", ALL)
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


def test_noahs_lists_are_read_as_they_are(noah):
    data = opened(noah)
    lists = noah_lists()
    assert read(data, "train-seed0") == truth(lists["train_meta.list.num_shot_2.seed_0"])
    assert read(data, "train-seed1") == truth(lists["train_meta.list.num_shot_2.seed_1"])
    assert read(data, "val") == truth(SPLITS["val"])
    assert read(data, "test") == truth(SPLITS["test"])
    record = data.provenance
    assert json.loads(json.dumps(record)) == record
    expected = {"task": "oxford_pets_2shot", "builder": "folder", "used_version": "noah"}
    expected |= {"data_dir": str(noah), "mock": False, "shots": 2, "mapped": False}
    assert expected.items() <= record.items()
    assert record["split_source"].startswith(f"NOAH's lists in {noah}")
    assert record["fingerprint"]
    assert data.class_names is None


def test_lists_that_hold_every_image_twice_stay_so(noah):
    """The lists of Pets at 1 shot do: 74 lines for 37 images."""
    twice = [line for line in SPLITS["train"][:3] for _ in range(2)]
    write_noah(noah, {"train_meta.list.num_shot_1.seed_0": twice})
    data = opened(noah, small("oxford_pets_1shot"))
    assert read(data, "train-seed0") == truth(twice)
    views = data.views("train-seed0", 0)
    assert len(views) == 6


def test_a_seed_without_a_list_is_refused(noah):
    with pytest.raises(UserError, match=r"num_shot_2\.seed_2; it has those of train-seed0, train"):
        opened(noah).load("train-seed2")


def test_shots_without_a_list_are_not_drawn_in_secret(noah):
    with pytest.raises(UserError, match=r"none named train_meta\.list\.num_shot_3\.seed_S"):
        opened(noah, small("oxford_pets_3shot"))
    write_coop(noah)
    data = opened(noah, small("oxford_pets_3shot"))
    assert data.provenance["split_source"].startswith("CoOp's lists")
    assert opened(noah).provenance["used_version"] == "noah"  # NOAH's are preferred


def test_coops_lists_are_read_and_drawn_from(coop):
    data = opened(coop)
    assert read(data, "val") == truth(SPLITS["val"])
    assert read(data, "test") == truth(SPLITS["test"])
    assert data.class_names == [name.lower() for name in NAMES]
    drawn = [read(data, f"train-seed{seed}") for seed in range(5)]
    for pairs in drawn:
        assert np.bincount([label for _, label in pairs]).tolist() == [2, 2, 2]
        assert len(set(pairs)) == 6
        assert set(pairs) <= set(truth(SPLITS["train"]))
    assert len({tuple(pairs) for pairs in drawn}) > 2
    assert read(opened(coop), "train-seed4") == drawn[4]
    assert data.provenance["used_version"] == "coop"
    assert "2 images a class drawn from its train list" in data.provenance["split_source"]
    fours = opened(coop, small("oxford_pets_4shot"))
    assert set(drawn[0]) <= set(read(fours, "train-seed0"))
    with pytest.raises(UserError, match="has 5 images of class abyssinian, fewer than the 6"):
        opened(coop, small("oxford_pets_6shot")).load("train-seed0")


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
    write_noah(tmp_path / folder, noah_lists())
    make_images(tmp_path / folder / images, ALL)
    data = opened(tmp_path / folder, task)
    assert read(data, "test") == truth(SPLITS["test"])


def test_paths_with_folders_and_spaces_are_read(tmp_path):
    folder = tmp_path / "stanford_cars"
    renamed = {name: f"cars_train/a b/{name}" for name in ALL}
    lists = {k: [(renamed[p], n) for p, n in lines] for k, lines in noah_lists().items()}
    write_noah(folder, lists)
    make_images(folder, renamed.values())
    assert read(opened(folder, CARS), "val") == truth(SPLITS["val"])


def test_lists_go_before_tfds(noah, monkeypatch):
    from fact_jax.data.sources import prepare

    monkeypatch.setattr(prepare, "find_builder", lambda *args: pytest.fail("TFDS was asked"))
    opened(noah)


def test_the_image_is_cropped_and_cached_as_others_are(noah, tmp_path):
    gradient = np.arange(64, dtype=np.uint8)[None, :, None] * np.ones((64, 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "PNG")
    (noah / "images" / SPLITS["test"][0][0]).write_bytes(buffer.getvalue())
    cache = tmp_path / "cache"
    settings = {"cache_dir": str(cache), "image_size": 28}
    square = opened(noah, **settings).load("test").images[0]
    cropped = opened(noah, **settings, resize="crop").load("test").images[0]
    assert square[0, 0, 0] < cropped[0, 0, 0] < cropped[0, -1, 0] < square[0, -1, 0]
    assert len(list(cache.iterdir())) == 2
    np.testing.assert_array_equal(opened(noah, **settings).load("test").images[0], square)
    assert len(list(cache.iterdir())) == 2


def test_a_changed_image_or_label_changes_fingerprint_and_cache(noah, tmp_path):
    cache = tmp_path / "cache"
    before = opened(noah, cache_dir=str(cache))
    before.load("val")
    before.load("test")
    make_image(noah / "images" / SPLITS["test"][0][0], 200)
    with (noah / "images" / SPLITS["test"][0][0]).open("ab") as file:
        file.write(b" ")
    after = opened(noah, cache_dir=str(cache))
    assert after.provenance["fingerprint"] != before.provenance["fingerprint"]
    assert read(after, "test")[0] == (200, 0)
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
    image = Image.fromarray(np.full((12, 9, 3), truth(SPLITS["train"])[6 + 2][0], np.uint8))
    expected = augment.augment(image, 8, np.random.default_rng([1, 0, 2]))
    np.testing.assert_array_equal(first[2], expected)
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


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"test_meta.list": SPLITS["test"][:-1]}, "have 8 images for test, expected 9"),
        ({"val_meta.list": []}, "have 0 images for val, expected 6"),
        ({"train_meta.list.num_shot_2.seed_1": []}, "have 0 images for train-seed1"),
        ({"val_meta.list": [*SPLITS["val"][:5], (ALL[15], 3)]}, "the class 3, outside the 3"),
        ({"val_meta.list": [*SPLITS["val"][:5], (ALL[15], "x")]}, "val_meta.list, line 6"),
        ({"val_meta.list": [*SPLITS["val"][:5], (ALL[15], -1)]}, "val_meta.list, line 6"),
        ({"val_meta.list": [*SPLITS["val"][:5], (ALL[15], "²")]}, "val_meta.list, line 6"),
        ({"val_meta.list": [*SPLITS["val"][:5], (ALL[15], "1" * 5000)]}, "val_meta.list, line 6"),
        ({"val_meta.list": [*SPLITS["val"][:5], ("a\0b", 0)]}, "val_meta.list, line 6"),
        ({"val_meta.list": [*SPLITS["val"][:5], ("/etc/x.jpg", 0)]}, "leads out of the folder"),
        ({"val_meta.list": [*SPLITS["val"][:5], ("a/../../x.jpg", 0)]}, "leads out of the folder"),
        (
            {"val_meta.list": [*SPLITS["val"][:5], SPLITS["val"][0]]},
            "twice in val: entries 1 and 6",
        ),
        (
            {"train_meta.list.num_shot_2.seed_0": [SPLITS["train"][0], (ALL[0], 1)]},
            "two classes: entry 2 of train-seed0",
        ),
        ({"val_meta.list": SPLITS["test"][:6]}, "6 images both in val and in test"),
        ({"train_meta.list.num_shot_2.seed_0": SPLITS["test"][3:5]}, "both in train-seed0 and"),
        ({"val_meta.list": [*SPLITS["val"][:5], ("none.jpg", 0)]}, "1 of them are not in"),
        ({"test_meta.list": [("none.jpg", 0), *SPLITS["test"][1:]]}, "images that are not there"),
    ],
)
def test_faulty_lists_are_refused(lists, words, noah):
    write_noah(noah, lists)
    with pytest.raises(UserError) as error:
        opened(noah)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_list_is_named(noah):
    (noah / "annotations" / "val_meta.list").unlink()
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read"):
        opened(noah)


def split(entry):
    return '{"train": [' + entry + '], "val": [], "test": []}'


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"train": []}', '{"train": [["a", 0]]}', "[" * 100_000, '{"train": 1e999}'),
        *map(
            split, ('["a", "²", "n"]', '["a", -1, "n"]', '["a", Infinity, "n"]', '["a", 1.5, "n"]')
        ),
        *map(split, ('["a", ' + "1" * 5000 + ', "n"]', '["\\ud800", 0, "n"]', '["/a", 0, "n"]')),
        *map(
            split, ('["../a", 0, "n"]', '["a\\u0000", 0, "n"]', '[1, 0, "n"]', '["a", true, "n"]')
        ),
    ],
)
def test_a_faulty_json_is_refused(content, coop):
    (coop / "split_zhou_OxfordPets.json").write_text(content)
    with pytest.raises(UserError, match=r"OxfordPets\.json: expected train, val and test"):
        opened(coop)


def test_a_list_that_is_not_utf8_or_a_fifo_is_named(noah):
    path = noah / "annotations" / "val_meta.list"
    path.write_bytes(path.read_bytes() + b"caf\xe9.jpg 0\n")
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read: line 7 is not UTF-8"):
        opened(noah)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"val_meta\.list cannot be read \(it is a FIFO"):
        opened(noah)


def test_a_link_to_an_image_of_test_is_that_image(noah):
    name = SPLITS["val"][0][0]
    (noah / "images" / name).unlink()
    (noah / "images" / name).symlink_to(SPLITS["test"][0][0])
    with pytest.raises(UserError, match="1 images both in val and in test"):
        opened(noah)


def test_damaged_images_are_left_out_where_asked(coop):
    name = SPLITS["train"][0][0]
    (coop / "images" / name).write_bytes(b"damaged")
    data = opened(coop, skip_damaged=True)
    assert data.provenance["skipped"] == 1
    assert data.provenance["skipped_names"] == [name]
    fours = opened(coop, small("oxford_pets_4shot"), skip_damaged=True)
    assert len(read(fours, "train-seed0")) == 12
    assert (int(ALL.index(name)), 0) not in read(fours, "train-seed0")


def test_images_of_train_are_looked_for_as_well(coop):
    (coop / "images" / SPLITS["train"][4][0]).unlink()
    with pytest.raises(UserError, match=r"name 30 images; 1 of them are not in .*bulldog_4\.jpg"):
        opened(coop)


def test_the_pets_own_annotations_are_no_lists_of_noahs(coop):
    """The official archive has a folder of the same name."""
    (coop / "annotations").mkdir()
    (coop / "annotations" / "test.txt").write_text("Abyssinian_201 1 1 1\n")
    assert opened(coop).provenance["used_version"] == "coop"


def test_missing_images_are_named_up_to_ten(noah):
    for name, _ in SPLITS["test"][1:]:
        (noah / "images" / name).unlink()
    with pytest.raises(UserError, match=r"8 of them are not in .*images: (\S+; ){7}\S+\.jpg\. C"):
        opened(noah)
    for name, _ in SPLITS["val"]:
        (noah / "images" / name).unlink()
    with pytest.raises(UserError, match=r"14 of them .*; and 4 more\. Complete the folder"):
        opened(noah)


def test_long_names_are_cut_in_messages():
    assert first_ten(["a\x1b", "b" * 10_000]) == f"a\\x1b; {'b' * 500}"


def test_command_line_shows_the_lists(noah, capsys):
    from fact_jax.cli.data import show

    assert show([PETS], str(noah.parent), prepare_first=True)  # nothing is downloaded
    text = capsys.readouterr().out
    for words in ("ready", "noah", f"read from the lists in {noah}"):
        assert words in text.replace("\n", "")
    for i, content in enumerate((b"no picture", b"\x89PNG")):
        (noah / "images" / SPLITS["test"][i][0]).write_bytes(content)
    assert not show([PETS], str(noah.parent), prepare_first=False)
    text = capsys.readouterr().out
    for words in ("wrong", "2 pictures cannot be decoded", *(n for n, _ in SPLITS["test"][:2])):
        assert words in text
    (noah / "annotations" / "val_meta.list").unlink()
    assert not show([PETS], str(noah.parent), prepare_first=False)
    assert "wrong" in capsys.readouterr().out
