"""A data set of one's own: a folder of pictures with a subfolder for each class."""

import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from configs import quickstart
from fact_jax import UserError, get_variant, load_factors
from fact_jax.cli.data import inspect
from fact_jax.cli.dry_run import show_plan
from fact_jax.cli.local import run_sweep
from fact_jax.data import VTAB, DataSettings, get_task, open_task
from fact_jax.report.page import write_report
from fact_jax.sweep import trainer
from fact_jax.sweep.cost import cell_cost
from fact_jax.sweep.plan import make_plan

NAMES = ("ant", "bee", "cat")


def pictures(folder, counts, first=0, suffix=".png"):
    """Writes a subfolder of pictures for each class; those of class i have the colour 40 i."""
    for i, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for j in range(count):
            pixels = np.full((9, 12, 3), 40 * i % 256, np.uint8)
            pixels[0, 0] = first + j  # no two alike
            Image.fromarray(pixels).save(folder / name / f"{first + j}{suffix}")


@pytest.fixture
def flat(tmp_path):
    pictures(tmp_path / "pets", dict.fromkeys(NAMES, 10))
    return tmp_path


@pytest.fixture
def no_tensorflow(monkeypatch):
    for name in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, name, None)


def opened(root, name="folder_pets", **settings):
    return open_task(get_task(name), DataSettings(data_dir=str(root), image_size=8, **settings))


def paths(data, split):
    return [record.name for record in data.view.records(split, data.size(split))]


def test_parts_are_drawn_class_by_class_where_there_is_one_folder_only(flat):
    data = opened(flat)
    parts = {split: paths(data, split) for split in ("train", "val", "test", "train+val")}
    # 10 of each class: 2 for test, and one in five (1) of the other 8 to choose on.
    assert [len(names) for names in parts.values()] == [21, 3, 6, 24]
    whole = {str(p.relative_to(flat / "pets")) for p in (flat / "pets").rglob("*.png")}
    assert whole == {p for split in ("train", "val", "test") for p in parts[split]}
    assert parts["train+val"] == parts["train"] + parts["val"]
    for split, names in parts.items():
        assert {name.split("/")[0] for name in names} == set(NAMES), split
    assert data.class_names == list(NAMES)
    assert (data.task.num_classes, data.task.test_size) == (3, 6)
    assert "drew test and val from train" in data.provenance["note"]
    images, labels = data.load("train")
    np.testing.assert_array_equal(images[:, 4, 4, 0], 40 * labels)
    assert set(data.load("train", 9).labels) == {0, 1, 2}  # a limit leaves no class out


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": 5, "test": 2}, (12, 3, 6)),
        ({"train": 5, "val": 3, "test": 2}, (15, 9, 6)),
        ({"train": 5, "valid": 3, "test": 2}, (15, 9, 6)),
        ({"train": 5, "validation": 3}, (12, 3, 9)),  # without test, it is the final measure
        ({"train": 10}, (21, 3, 6)),
    ],
)
def test_folders_of_parts_are_taken_and_missing_parts_drawn(tmp_path, folders, sizes):
    for i, (name, count) in enumerate(folders.items()):
        pictures(tmp_path / "pets" / name, dict.fromkeys(NAMES, count), first=10 * i)
    data = opened(tmp_path)
    assert tuple(data.size(split) for split in ("train", "val", "test")) == sizes


def test_a_test_folder_without_labels_is_no_test_part(tmp_path):
    """Kaggle's way: test/1.jpg, test/2.jpg."""
    for name in ("train", "val"):
        pictures(tmp_path / "pets" / name, dict.fromkeys(NAMES, 5))
    pictures(tmp_path / "pets", {"test": 4})
    data = opened(tmp_path)
    assert {p.split("/")[0] for p in paths(data, "test")} == {"val"}
    assert "val/, there being no labelled test/" in data.provenance["note"]


def test_a_class_may_be_called_train(tmp_path):
    pictures(tmp_path / "pets", {"bus": 5, "train": 5})
    assert opened(tmp_path).class_names == ["bus", "train"]


@pytest.mark.parametrize("names", [("Train", "Test"), ("Training", "Validation"), ("test",)])
def test_parts_that_are_not_known_by_their_names_are_no_classes(tmp_path, names):
    for name in names:
        pictures(tmp_path / "pets" / name, dict.fromkeys(NAMES, 2))
    with pytest.raises(UserError, match="which look like parts of the data, not like classes"):
        opened(tmp_path)


def test_other_files_and_hidden_ones_are_left_out_and_subfolders_are_not(flat):
    own = flat / "pets" / "ant"
    (own / "notes.txt").write_text("no picture")
    (own / ".hidden.png").write_bytes(b"")
    (flat / "pets" / ".cache").mkdir()
    pictures(own, {"more": 5}, first=50, suffix=".JPG")
    data = opened(flat)
    assert sum(data.size(split) for split in ("train", "val", "test")) == 35
    assert data.class_names == list(NAMES)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({}, "is no folder"),
        ({"": {"ant": 5, "bee": 5, "dog": 0}}, "class folder .*dog has no pictures"),
        ({"": {"cat": 5}}, "has one class, 'cat'"),
        ({"": {".hidden": 5}}, "has no subfolders"),
        ({"": {"ant": 1, "bee": 1}}, "too few pictures to keep some for test"),
        ({"": {"ant": 2, "bee": 2}}, "too few pictures to keep some to choose settings on"),
        (
            {"train": {"ant": 5, "bee": 5}, "test": {"ant": 2, "dog": 2}},
            "pictures of 'dog' in its test part, but none in train",
        ),
        ({"train": {"ant": 5}, "val": {"ant": 2}, "valid": {"ant": 2}}, "both val/ and valid/"),
        (
            {"train": {"caf\u00e9": 5, "bar": 5}, "test": {"cafe\u0301": 5, "bar": 5}},
            r"look alike .*'cafe\\u0301' and 'caf\\xe9'. Rename",
        ),
    ],
)
def test_folders_that_cannot_serve_are_refused_by_name(tmp_path, folders, words):
    for part, counts in folders.items():
        pictures(tmp_path / "pets" / part, counts)
    with pytest.raises(UserError, match=f"folder_pets: .*{words}"):
        opened(tmp_path)


def test_damaged_pictures_are_left_out_where_asked(flat):
    """The same rows are drawn as from a folder without them."""
    for name in ("bee/3.png", "ant/1.png"):
        (flat / "pets" / name).write_bytes(b"no picture")
    data = opened(flat, skip_damaged=True)
    record = data.provenance
    assert (record["skipped"], record["skipped_names"]) == (2, ["ant/1.png", "bee/3.png"])
    assert data.load("train+val").images.shape[0] + data.load("test").images.shape[0] == 28
    assert len(opened(flat, "folder_pets_2shot", skip_damaged=True).load("train-seed0").labels) == 6
    for name in ("bee/3.png", "ant/1.png"):
        (flat / "pets" / name).unlink()
    clean = opened(flat)
    assert clean.provenance["fingerprint"] == record["fingerprint"]
    assert "skipped" not in clean.provenance
    for path in (flat / "pets" / "ant").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="class folder .*ant has no pictures: no sound file"):
        opened(flat, skip_damaged=True)


def test_links_multiply_nothing(flat):
    """A link to a parent, to another class, to a picture; a class that is a link counts."""
    pets = flat / "pets"
    whole = [paths(opened(flat), split) for split in ("train", "val", "test")]
    (pets / "ant" / "up").symlink_to("..")
    (pets / "bee" / "up").symlink_to("../..")
    (pets / "ant" / "bees").symlink_to("../bee")
    (pets / "ant" / "again.png").symlink_to("../cat/1.png")
    data = opened(flat)
    assert [paths(data, split) for split in ("train", "val", "test")] == whole
    for left_out in ("up (a link to a folder", "bees (a link", "again.png (a link to a picture"):
        assert left_out in data.provenance["note"]
    pets.joinpath("cat").rename(flat / "elsewhere")
    pets.joinpath("cat").symlink_to(flat / "elsewhere")
    assert [paths(opened(flat), split) for split in ("train", "val", "test")] == whole
    (pets / "bee" / "up").unlink()  # it leads to the picture below
    Image.new("RGB", (4, 4)).save(flat / "pool.png")
    for name in ("a.png", "b.png"):  # a picture elsewhere counts once
        (pets / "ant" / name).symlink_to(flat / "pool.png")
    assert sum(opened(flat).size(split) for split in ("train", "val", "test")) == 31
    (pets / "dog").symlink_to("cat")
    with pytest.raises(UserError, match="dog has no pictures: it is a link to a folder that"):
        opened(flat)


def test_fifos_are_not_opened_and_links_to_nothing_are_named(flat):
    os.mkfifo(flat / "pets" / "ant" / "x.png")
    state, *_, words = inspect(get_task("folder_pets"), str(flat))
    assert (state, "x.png (a FIFO)" in words) == ("ready", True)
    for name in ("y.png", "z.png"):
        (flat / "pets" / "ant" / name).symlink_to("nothing")
    state, *_, words = inspect(get_task("folder_pets"), str(flat))
    assert state == "wrong"
    assert re.search(r"ant/y\.png \(No such .*ant/z\.png \(No such .* cannot be read\.", words)
    skipped = opened(flat, skip_damaged=True).provenance["skipped_names"]
    assert skipped == ["ant/y.png", "ant/z.png"]


def test_damaged_pictures_are_not_skipped_in_secret_where_they_cannot_be():
    with pytest.raises(UserError, match="digits: config.skip_damaged is True, but only pictures"):
        open_task(get_task("digits"), DataSettings(skip_damaged=True))


def test_names_that_are_not_utf8_are_read_and_shown_escaped(flat, tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    os.rename(flat / "pets" / "ant", flat / "pets" / latin)
    os.rename(flat / "pets" / "bee" / "3.png", flat / "pets" / "bee" / f"{latin}.png")
    data = opened(flat, cache_dir=str(tmp_path / "cache"))
    assert data.class_names == ["bee", "caf\\udce9", "cat"]
    assert data.load("train+val").images.shape[0] == 24
    json.dumps(data.provenance, ensure_ascii=False).encode()
    (flat / "pets" / latin / "1.png").write_bytes(b"no picture")
    state, *_, words = inspect(get_task("folder_pets"), str(flat))
    assert "caf\\udce9/1.png: it is no image" in words
    words.encode()


def test_settings_that_make_no_sense_for_a_folder_are_refused(flat):
    for name in ("folder_pets", "folder_pets_2shot"):
        with pytest.raises(UserError, match="a folder has no mock data"):
            opened(flat, name, mock=True)
        with pytest.raises(UserError, match="data_dir .*is empty"):
            open_task(get_task(name), DataSettings())
    with pytest.raises(UserError, match="has no split 'train800'; it has train, val, test"):
        opened(flat).load("train800")


def test_few_shot_lists_are_drawn_from_the_train_part(flat):
    data, whole = opened(flat, "folder_pets_2shot"), opened(flat)
    assert data.size("train-seed0") == 6
    names = paths(data, "train-seed0")
    assert set(names) <= set(paths(whole, "train"))
    assert sorted(name.split("/")[0] for name in names) == sorted(NAMES * 2)
    for split in ("val", "test"):
        assert paths(data, split) == paths(whole, split)
    assert data.views("train-seed0", 1).shape == (6, 8, 8, 3)
    assert "the folders of classes" in data.provenance["split_source"]


def test_the_data_command_says_what_a_folder_holds(flat):
    state, used, test, words = inspect(get_task("folder_pets"), str(flat))
    assert (state, used, test) == ("ready", "classes", "6")
    assert "3 classes" in words
    assert "train 21, val 3, test 6 pictures" in words
    assert inspect(get_task("folder_none"), str(flat))[0] == "wrong"
    state, *_, words = inspect(get_task("folder_pets_8shot"), str(flat))
    assert (state, "7 images of class ant, fewer than the 8" in words) == ("wrong", True)
    for name in ("bee/3.png", "ant/1.png"):
        (flat / "pets" / name).write_text("no picture")
    state, *_, words = inspect(get_task("folder_pets"), str(flat))
    assert state == "wrong"
    assert re.search("2 pictures cannot be decoded.*bee/3.png: it is no image of a known", words)


def sweep_config(root, tiny=None, **changes):
    config = quickstart.get_config()
    config.update(
        tasks="folder_pets", methods="linear,fact_tt", data_dir=str(root), epochs=2, warmup_epochs=0
    )
    config.update(tiny or {}, **changes)
    config.linear.update(epochs=30, learning_rate=0.1)
    config.fact_tt.learning_rates = (1e-2, 1e-3)  # chosen on 'val'
    return config


def test_a_sweep_over_a_folder_needs_no_tensorflow_and_ends_in_a_report(
    flat, tmp_path, tiny, no_tensorflow
):
    config, workdir = sweep_config(flat, tiny), tmp_path / "run"
    console = Console(record=True, width=150)
    show_plan(config, str(workdir), console, elsewhere="ray")
    # Two epochs of 24, and 6 of test; and twice 21, and 3, for each of two candidates.
    assert str(2 * 24 + 6 + 2 * (2 * 21 + 3)) in console.export_text()
    linear, fact = run_sweep(config, str(workdir), console)
    assert (fact["num_train"], fact["num_test"], fact["group"]) == (24, 6, "own")
    assert linear["accuracy"] == 100.0  # three flat colours
    assert sum(number for _, _, number in fact["confusion"]) == 6
    assert len(fact["per_class_accuracy"]) == 3
    factors = load_factors(workdir / "factors" / f"{fact['cell']}.safetensors")
    assert factors.metadata["class_names"] == list(NAMES)
    write_report([workdir])
    text = (workdir / "report" / "report.md").read_text()
    assert "Own data sets" in text
    assert "folder_pets" in text
    assert "VTAB-1K:" not in text
    # Another picture of the same size in bytes makes another data set of it.
    path = flat / "pets" / "ant" / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"pets are others than those .* do not compare"):
        run_sweep(config, str(workdir), console)
    path.write_bytes(content)
    assert run_sweep(config, str(workdir), console) == [linear, fact]


def test_more_classes_than_any_published_task_has(tmp_path, tiny):
    number = max(task.num_classes for task in VTAB.values()) + 3
    pictures(tmp_path / "pets", {f"{i:04}": 3 for i in range(number)})
    config = sweep_config(tmp_path, tiny, methods="linear", seeds=(0,))
    config.linear.epochs = 1
    (result,) = run_sweep(config, str(tmp_path / "run"), Console(quiet=True))
    assert len(result["class_names"]) == number
    assert result["num_head"] == (24 + 1) * number


def test_the_cost_of_a_folder_that_is_not_there_is_its_epochs(tmp_path):
    (cell,) = make_plan(sweep_config(tmp_path, methods="linear"))
    assert cell_cost(cell, get_variant("vit_mini"))[:4] == (1, 30, 0, 0)
    console = Console(record=True, width=150)
    show_plan(sweep_config(tmp_path), str(tmp_path / "run"), console, elsewhere="ray")
    assert "folder_pets: its folder is not there" in console.export_text()


def test_a_dry_run_says_why_a_folder_is_refused(tmp_path):
    pictures(tmp_path / "pets", {"ant": 3})
    config, console = sweep_config(tmp_path), Console(quiet=True)
    with pytest.raises(UserError, match="Task folder_pets: .*has one class"):
        show_plan(config, str(tmp_path / "run"), console, elsewhere="ray")


def test_a_task_of_a_folder_is_known_by_its_name_alone():
    """Reports are made where the pictures are not."""
    task = get_task("folder_my-pets.v2")
    assert (task.folder, task.group) == ("my-pets.v2", "own")


@pytest.mark.usefixtures("no_tensorflow")
def test_data_are_missed_before_weights_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "find_weights", lambda *_: pytest.fail("weights were fetched"))
    config = sweep_config(tmp_path, tasks="dtd", methods="linear")
    with pytest.raises(UserError, match=r"pip install 'fact-jax\[tfds\]'"):
        run_sweep(config, str(tmp_path / "run"), Console(quiet=True))
