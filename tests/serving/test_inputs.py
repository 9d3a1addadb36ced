"""Inputs and outputs of `predict`: arrays, folders of pictures, names of classes, tables."""

import os

import numpy as np
import pytest
from PIL import Image

from fact_jax import Linear, UserError, normalise
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask
from fact_jax.images.pipeline import decode
from fact_jax.serving.inputs import Pictures, find_pictures, read_npy
from fact_jax.serving.outputs import logits_bytes, prepare_output, read_class_names

MISTAKES = {
    "uint8": (np.zeros((2, 32, 32, 3), "uint8"), "uint8 [2, 32, 32, 3]; expected float32"),
    "float64": (np.zeros((2, 32, 32, 3)), "float64 [2, 32, 32, 3]"),
    "channels first": (np.zeros((2, 3, 32, 32), "float32"), "transpose(0, 2, 3, 1)"),
    "one image": (np.zeros((32, 32, 3), "float32"), "images[None]"),
    "grey": (np.zeros((2, 32, 32), "float32"), "a number of square colour images"),
    "alpha": (np.zeros((2, 32, 32, 4), "float32"), "[2, 32, 32, 4]"),
    "not square": (np.zeros((2, 32, 40, 3), "float32"), "not square"),
    "no image": (np.zeros((0, 32, 32, 3), "float32"), "no image in it"),
    "size": (np.zeros((2, 30, 30, 3), "float32"), "30 x 30 pixels, which is not a multiple"),
    "objects": (np.array([{}]), "cannot be read as a .npy file"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_arrays_of_another_kind_are_refused_with_what_was_found(tmp_path, case):
    array, words = MISTAKES[case]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError) as caught:
        read_npy(tmp_path / "x.npy", patch_size=8)
    assert words in str(caught.value)
    assert "x.npy" in str(caught.value)


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


NO_ARRAYS = {
    "empty": b"",
    "text": b"hello",
    "cut": b"\x93NUMPY\x01\x00v\x00{'descr'",
    "open bracket": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': ((2,}"),
    "no name": _npy("{'descr': '<f4', 'fortran_order': False, 3: 'shape'}"),
    "unhashable": _npy("{[]: 1}"),
    "huge": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**99, 32, 32, 3)}"),
    "huge number": _npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({9**99}, 8, 8, 3)}}"),
    "large": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999, 8, 8, 3)}"),
    "negative": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8, 8, 3)}"),
    "nested": _npy("(" * 5000),
    "dtype": _npy("{'descr': '<f4,', 'fortran_order': False, 'shape': (1, 8, 8, 3)}"),
    "truncated": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8, 8, 3)}") + b"1234",
    "long": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
}


@pytest.mark.parametrize("content", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_files_that_are_no_arrays_are_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a \.npy file"):
        read_npy(tmp_path / "x.npy", patch_size=8)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(UserError, match=r"x cannot be read .*it is a FIFO"):
        read_npy(tmp_path / "x", patch_size=8)
    with pytest.raises(UserError, match="x cannot be read as text .it is a FIFO"):
        read_class_names(tmp_path / "x", 3)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_arrays_of_either_order_are_mapped(tmp_path, order, dtype):
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    found = read_npy(tmp_path / "x.npy", patch_size=8)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, x)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".ipynb_checkpoints" / "a").mkdir(parents=True)
    for name in (".hidden.png", ".ipynb_checkpoints/a/x.png", "a.h5", "a.grib", "a.mpg", "a.eps"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="holds no picture"):
        find_pictures(tmp_path)
    (tmp_path / "a.jpeg").write_text("")
    hidden = tmp_path / ".ipynb_checkpoints"  # asked for by name
    assert find_pictures(tmp_path) == [tmp_path / "a.jpeg"]
    assert find_pictures(hidden) == [hidden / "a" / "x.png"]


def test_links_fifos_and_names_that_are_not_utf8(tmp_path):
    """A link to a parent ends, a FIFO is left out with a warning, CSV files are UTF-8."""
    latin = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "a").mkdir()
    for name in ("1.png", latin):
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / name, "PNG")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "again.png").symlink_to("a/1.png")
    os.mkfifo(tmp_path / "x.png")
    with pytest.warns(UserWarning, match=r"left out: .*up \(a link .*x\.png \(a FIFO\).*again"):
        found = find_pictures(tmp_path)
    assert found == [tmp_path / "a" / "1.png", tmp_path / "a" / latin]
    pictures = Pictures([*found, tmp_path / "x.png"], 8, "none")
    list(pictures.batches(4))
    assert pictures.unreadable == {2: "it is a FIFO, not a file"}
    text = logits_bytes(".csv", np.zeros((1, 1)), [latin], ["\udce9"])
    assert text.decode() == "file,\\udce9\ncaf\\udce9.png,0\n"


def test_hostile_pictures_cost_a_row_each(tmp_path):
    """One that Pillow would run Ghostscript for, and a 90 kB PNG of 30,000 x 30,000 pixels."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    pictures = Pictures(find_pictures(tmp_path), 8, "none")
    (batch,) = pictures.batches(4)
    assert batch.shape == (3, 8, 8, 3)
    assert pictures.unreadable.keys() == {0, 1}
    assert pictures.unreadable[0] == "it is no image of a known format"
    assert "decompression bomb" in pictures.unreadable[1]


def test_a_file_that_cannot_be_written_is_told_before_and_after(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file/l.npy", "file/a/l.npy"):
        for write in (lambda p: prepare_output(p), lambda p: write_atomically(p, b"x")):
            with pytest.raises(UserError, match=r"l\.npy cannot be written \(.*another path"):
                write(str(tmp_path / path))
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        prepare_output(str(tmp_path / "folder.npy"))
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(str(tmp_path / "folder.npy"), b"x")
    prepare_output(str(tmp_path / "a" / "b" / "l.npy"))
    assert list((tmp_path / "a" / "b").iterdir()) == []
    write_atomically(str(tmp_path / "a" / "b" / "l.npy"), b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file", "folder.npy"]


def test_pictures_are_prepared_as_the_factor_file_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"]

    def batch(**stated):
        task = TrainedTask(Linear(), {}, {}, stated, tmp_path / "f.safetensors")
        (images,) = Pictures.of(paths, task, 32).batches(4)
        return images[0]

    def expected(size, name, **how):
        return np.asarray(normalise(decode(paths[0], size, **how)[None], name))[0]

    np.testing.assert_array_equal(batch(), expected(32, "imagenet"))
    stated = {"image_size": 16, "normalisation": "none", "jpeg_quality": 75, "resize": "crop"}
    cropped = expected(16, "none", jpeg_quality=75, resize="crop")
    np.testing.assert_array_equal(batch(**stated), cropped)
    assert np.abs(batch(**{**stated, "resize": "square"}) - cropped).max() > 0.1
