"""CSV files of one's own pictures."""

import numpy as np
import pytest
from PIL import Image

from fact_jax import UserError
from fact_jax.data import DataSettings, get_task, open_task

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture
def pictures(tmp_path):
    """A folder with ten pictures of each of three colours; what makes a CSV file beside it."""
    (tmp_path / "in").mkdir()
    for name, colour in COLOURS.items():
        for i in range(10):
            Image.new("RGB", (9, 7), colour).save(tmp_path / "in" / f"{name}{i}.png")

    def write(*lines, name="shades"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def opened(folder, name="csv_shades", **settings):
    return open_task(get_task(name), DataSettings(str(folder), image_size=8, **settings))


def rows(split=""):
    return [f"in/{name}{i}.png,{name}{split}" for name in COLOURS for i in range(10)]


def test_parts_are_drawn_and_classes_are_in_the_order_of_their_names(pictures):
    data = opened(pictures("path,label", *rows()))
    assert data.class_names == ["blue", "green", "red"]
    assert {part: data.size(part) for part in ("train", "val", "test")} == {
        "train": 21,
        "val": 3,
        "test": 6,
    }
    test = data.load("test")
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    for image, label in zip(test.images, test.labels, strict=True):
        np.testing.assert_array_equal(image[0, 0], COLOURS[data.class_names[label]])
    names = {
        record.name for part in ("train", "val", "test") for record in data.view.records(part, 99)
    }
    assert len(names) == 30


def test_a_column_split_decides_the_parts(pictures):
    lines = [f"{row},{'test' if i % 2 else 'train'}" for i, row in enumerate(rows())]
    data = opened(pictures("path,label,split", *lines))
    assert (data.size("test"), data.size("train") + data.size("val")) == (15, 15)
    names = {record.name for record in data.view.records("test", 99)}
    assert names == {line.split(",")[0] for line in lines if line.endswith("test")}


def test_several_labels_are_rows_of_zeros_and_ones(pictures, tmp_path):
    lines = ["in/red0.png,warm|bright", "in/blue0.png,", "in/green0.png,bright", "in/red1.png,warm"]
    more = [f"in/red{i}.png,warm" for i in range(2, 10)]
    folder = pictures("path,labels", *lines, *more)
    data = opened(folder, cache_dir=str(tmp_path / "cache"))
    assert data.task.multi_label
    assert data.class_names == ["bright", "warm"]
    parts = {part: data.load(part) for part in ("train", "val", "test")}
    for _ in range(2):  # decoded, and from the cache
        assert all(examples.labels.shape[1] == 2 for examples in parts.values())
        total = sum(examples.labels.sum(axis=0) for examples in parts.values())
        assert total.tolist() == [2, 10]
        parts = {
            part: opened(folder, cache_dir=str(tmp_path / "cache")).load(part) for part in parts
        }


def test_few_shot_lists_are_drawn_from_a_file(pictures):
    data = opened(pictures("path,label", *rows()), "csv_shades_2shot")
    assert sorted(data.load("train-seed0").labels.tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="no K pictures a class"):
        opened(pictures("path,labels", *rows()), "csv_shades_2shot")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "expected a header with the columns path and label"),
        (("file,label", "in/red0.png,red"), "'file,label'; expected a header"),
        (("path;label", "in/red0.png;red"), "with commas between"),
        (("path,label,labels", "in/red0.png,red,red"), "expected a header"),
        (("path,label",), "names no picture"),
        (("path,label", "in/red0.png"), r"line 2: 1 fields, expected the header's 2"),
        (("path,label", "in/red0.png,"), r"line 2: 'in/red0.png' has no label"),
        (("path,label", "../red0.png,red"), "leads out of the folder"),
        (("path,label", "in/red0.png,red", "in/red0.png,blue"), "twice, in lines 2 and 3"),
        (
            ("path,label", "in/red0.png,red", "in/../in/red1.png,red"),
            "leads out of the folder",
        ),
        (("path,label", "in/red0.png,red", "./in/red0.png,blue"), "twice, in lines 2 and 3"),
        (
            ("path,labels,split", "in/red0.png,red,", "in/red1.png,red,", "in/blue0.png,,test"),
            "no picture for test has a label, so that nothing can be measured",
        ),
        (("path,label", "in/none.png,red", "in/red0.png,blue"), r"1 of them are not in .*none.png"),
        (("path,label", "in/red0.png,red", "in/red1.png,red"), "1 different labels in train"),
        (
            ("path,label,split", "in/red0.png,red,dev"),
            "split is 'dev'; expected train, val or test",
        ),
        (
            ("path,label,split", "in/red0.png,red,", "in/blue0.png,blue,test"),
            "label 'blue' is in test, but no picture of train has it",
        ),
        (("path,label", "in/red0.png,red", "in/blue0.png,blue"), "too few pictures"),
        (("path,label", f"in/red0.png,{'x' * 201}"), "over 200 characters"),
    ],
)
def test_a_file_without_sense_is_refused(pictures, lines, words):
    with pytest.raises(UserError, match=words):
        opened(pictures(*lines))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="shades.csv is not there. Expected a CSV file"):
        opened(tmp_path)


def test_damaged_pictures_can_be_left_out(pictures, tmp_path):
    (tmp_path / "in" / "red3.png").write_bytes(b"no picture")
    folder = pictures("path,label", *rows())
    assert sum(opened(folder).size(part) for part in ("train", "val", "test")) == 30
    data = opened(folder, skip_damaged=True)
    assert sum(data.size(part) for part in ("train", "val", "test")) == 29
    assert data.provenance["skipped_names"] == ["in/red3.png"]


def test_pictures_with_a_label_are_in_every_drawn_part(pictures):
    """Of five with a label among thirty; a draw of all alike would miss them often."""
    labelled = [f"in/red{i}.png,warm" for i in range(5)]
    lines = [*labelled, *(f"{row.split(',')[0]}," for row in rows()[5:])]
    data = opened(pictures("path,labels", *lines))
    for part in ("train", "val", "test"):
        assert data.load(part).labels.sum() >= 1
