"""The programs under tools/ that made the stored pictures of the offline suite."""

import csv

import numpy as np
import pytest

from fact_jax.data.offline.bundled import NUM_TRAIN, NUM_VAL, SCRIPTS, _packed, identities
from tools import make_script, make_textile
from tools.make_emoji import deal, identity_of
from tools.packing import Picture, check_source, unlike, write


def _entry(unified, name="x", subcategory="y"):
    return {"unified": unified, "short_name": name, "subcategory": subcategory}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_entry("1F3C3"), _entry("1F3C3-200D-2640-FE0F-200D-27A1-FE0F")),  # runner, a woman, right
        (_entry("1F468-200D-1F3EB"), _entry("1F9D1-200D-1F3EB")),  # teachers
        (_entry("1F385"), _entry("1F9D1-200D-1F384")),  # Santa Claus
        (_entry("1F468-200D-1F9B0"), _entry("1F475")),  # hair and age
        (_entry("1F550", "clock1"), _entry("1F55F", "clock430")),
        (_entry("2764-FE0F", subcategory="heart"), _entry("1F499", subcategory="heart")),
    ],
)
def test_variants_of_an_emoji_are_one_identity(one, other):
    assert identity_of(one) == identity_of(other)
    assert identity_of(one) != identity_of(_entry("1F600"))


def _pictures(count, group):
    images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    return [Picture(image, i % 2, i // group) for i, image in enumerate(images)]


def test_emoji_are_dealt_so_that_no_identity_is_in_two_parts():
    pictures = [p._replace(identity=p.identity * 2 + p.label) for p in _pictures(252, 4)] * 5
    dealt = deal(pictures, np.random.RandomState(1))
    assert len(dealt) == len(pictures)
    parts = dealt[:NUM_TRAIN], dealt[NUM_TRAIN : NUM_TRAIN + NUM_VAL], dealt[1000:]
    seen = [{p.identity for p in part} for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))
    for part in parts:
        assert np.mean([p.label for p in part]) == pytest.approx(0.5, abs=0.05)


def test_an_identity_of_two_categories_ends_the_program():
    one, other = _pictures(2, 1)[0], _pictures(2, 1)[1]
    with pytest.raises(SystemExit, match="two categories"):
        deal([one._replace(identity=1, label=0), other._replace(identity=1, label=1)], None)


def test_pictures_are_packed_and_read_again_and_equal_ones_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    few, many = (random.integers(0, top, (8, 8, 3)).astype(np.uint8) for top in (3, 255))
    kept = unlike([Picture(few, 0, 5), Picture(many, 1, 6), Picture(few.copy(), 1, 7)])
    assert [picture.identity for picture in kept] == [5, 6]
    write(tmp_path / "x.npz", kept)
    read = _packed(tmp_path / "x.npz")
    for example, picture in zip(read, kept, strict=True):
        np.testing.assert_array_equal(example["image"], picture.image)
        assert example["label"] == picture.label
    assert identities(tmp_path / "x.npz").tolist() == [5, 6]
    with pytest.raises(SystemExit, match="another file or version"):
        check_source(tmp_path / "x.npz", "0" * 64)


def test_a_part_of_textile_holds_the_local_fault():
    random = np.random.RandomState(0)
    cloth = np.full((120, 120), 128, np.uint8) + random.randint(0, 8, (120, 120)).astype(np.uint8)
    for y, x in ((3, 3), (60, 90), (104, 50)):
        faulty = cloth.copy()
        faulty[y : y + 12, x : x + 8] = random.randint(0, 2, (12, 8)) * 255
        part = make_textile.part(faulty, random)
        assert part.shape == (32, 32)
        assert ((part < 20) | (part > 235)).sum() > 80  # nearly all of its 96 pixels


def test_no_row_of_the_table_of_fonts_serves_two_splits_and_no_letter_two_scripts():
    with make_script.TABLE.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    fonts = [(row["package"], row["files"]) for row in rows]
    assert len(fonts) == len(set(fonts)) == 88
    for script in SCRIPTS:
        parts = {row["part"] for row in rows if row["script"] == script}
        assert parts == {"train", "validation", "test"}
    letters = [set(letters) for letters in make_script.LETTERS.values()]
    assert sum(map(len, letters)) == len(set.union(*letters))


def test_a_font_in_two_families_is_refused(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.ttf").touch()
    table = tmp_path / "table.tsv"
    head = "script\tpart\tpackage\tfiles\tlicence\n"
    table.write_text(head + "Latin\ttrain\tone\ta*\tOFL\n")
    monkeypatch.setattr(make_script, "TABLE", table)
    (family,) = make_script.read_table(tmp_path)
    assert family.files == [tmp_path / "one" / "a.ttf"]
    table.write_text(head + "Latin\ttrain\tone\ta*\tOFL\nLatin\ttest\tone\t*.ttf\tOFL\n")
    with pytest.raises(SystemExit, match=r"Two families of the table have a\.ttf"):
        make_script.read_table(tmp_path)
