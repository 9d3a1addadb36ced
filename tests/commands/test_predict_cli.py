"""`python -m experiments.predict` as a user runs it, on the bundled ViT."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from devices import on_host_devices
from PIL import Image
from run_command import run_command

import fact_jax
from fact_jax import FacTTT, UserError, load_vit
from fact_jax.cli.arguments import variant_of
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import to_bytes
from fact_jax.files.load import load_factors
from fact_jax.files.reference import reference_tensors
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum, write_npz
from fact_jax.images.normalise import normalise
from fact_jax.serving import predict as predict_module
from fact_jax.serving.inputs import Pictures, find_pictures, read_npy
from fact_jax.serving.outputs import logits_bytes, prepare_output, read_class_names
from fact_jax.serving.predict import Predictor

NAMES = ["red [1]", "green", "blue, pale", "ink"]


def predict(*arguments, **env):
    return run_command("experiments.predict", *arguments, **env)


@pytest.fixture(scope="module")
def mini():
    return load_vit("vit_mini")


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):
    """A factor file of random factors in both formats, and the images it is asked about."""
    model, base = mini
    folder, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    method = FacTTT(4, 0.1)
    tree = {
        "factors": method.init(jax.random.key(0), model.config),
        "head": {"kernel": np.empty((128, 4)), "bias": np.empty(4)},
    }
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("float32"), tree)
    metadata = {
        "variant": "vit_mini",
        "weights_sha256": checksum(base),
        "class_names": NAMES,
        "image_size": 32,
        "normalisation": "inception",
        "jpeg_quality": 75,
    }
    content = to_bytes(method, tree, model.config, metadata)
    (folder / "f.safetensors").write_bytes(content)
    (folder / "f.pt").write_bytes(
        torch_bytes(reference_tensors(method, tree["factors"], tree["head"]))
    )
    np.save(folder / "x.npy", rng.normal(size=(37, 32, 32, 3)).astype("float32"))
    return folder


@pytest.fixture(scope="module")
def expected(mini, trained):
    """Logits of x.npy by the unmerged forward pass."""
    model, base = mini
    task = load_factors(trained / "f.safetensors")
    adaptation = task.method.adaptation(task.factors, model.config)
    x = fact_jax.features(model, base, np.load(trained / "x.npy"), adaptation)
    return np.asarray(x @ task.head["kernel"] + task.head["bias"][None])


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 8), (4, 32), (4, 64)])
def test_an_array_file_gives_logits_whatever_the_batch_size_and_devices(
    trained, expected, tmp_path, devices, batch_size
):
    out = predict(
        "--variant",
        "vit_mini",
        "--factors",
        trained / "f.safetensors",
        "--images",
        trained / "x.npy",
        "--out",
        tmp_path / "l.npy",
        "--batch_size",
        batch_size,
        **on_host_devices(devices),
    )
    assert out.returncode == 0, out.stderr
    logits = np.load(tmp_path / "l.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert out.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["l.npy"]  # nothing half-written beside it


def test_a_pytorch_file_gives_the_same_logits(trained, expected, tmp_path):
    arguments = [
        "--variant",
        "vit_mini",
        "--factors",
        trained / "f.pt",
        "--images",
        trained / "x.npy",
        "--out",
        tmp_path / "l.npy",
    ]
    out = predict(*arguments, "--method", "tt", "--scale", 0.1)
    assert out.returncode == 0, out.stderr
    logits = np.load(tmp_path / "l.npy")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    out = predict(*arguments)
    assert out.returncode == 2
    assert "--scale" in out.stderr


def test_the_predictor_takes_any_number_of_images(mini, trained, expected):
    predictor = Predictor(*mini, load_factors(trained / "f.safetensors"), batch_size=16)
    images = np.load(trained / "x.npy")
    for n in (0, 1, 16, 37):
        logits = predictor.logits(images[:n])
        assert logits.shape == (n, 4)
        np.testing.assert_allclose(logits, expected[:n], atol=1e-3)
    with pytest.raises(UserError, match="batch_size is 0"):
        Predictor(*mini, predictor.task, batch_size=0)


@pytest.mark.parametrize(
    ("batches", "rows"),
    [([1], [1]), ([5], [5]), ([16, 16, 5], [16, 16, 16]), ([3, 16, 5], [3, 16, 16])],
)
def test_only_a_shorter_last_batch_is_padded(monkeypatch, mini, trained, expected, batches, rows):
    predictor = Predictor(*mini, load_factors(trained / "f.safetensors"), batch_size=10**12)
    program, shapes = predict_module._logits, []
    monkeypatch.setattr(
        predict_module, "_logits", lambda *a: shapes.append(len(a[-1])) or program(*a)
    )
    images = np.load(trained / "x.npy")[: sum(batches)]
    logits = list(predictor.stream(np.split(images, np.cumsum(batches)[:-1])))
    assert [len(x) for x in logits] == batches
    assert shapes == rows
    np.testing.assert_allclose(np.concatenate(logits), expected[: sum(batches)], atol=1e-3)


def test_the_forward_pass_is_the_file_s_and_the_numerics_the_flags(mini, trained, tmp_path):
    """GELU, epsilon and image size of the training; --dtype and --precision."""
    from fact_jax.cli.predict import load_predictor

    model, base = mini
    task = load_factors(trained / "f.safetensors")
    config = model.config.replace(gelu="tanh", layer_norm_eps=0.1)
    tree = {"factors": task.factors, "head": task.head}
    other = {"variant": "vit_mini", "image_size": 48, "normalisation": "none"}
    path = tmp_path / "f.safetensors"
    path.write_bytes(to_bytes(task.method, tree, config, other))
    images = np.load(trained / "x.npy")
    images = np.concatenate([images, images[:, :16]], 1)
    images = np.concatenate([images, images[:, :, :16]], 2)
    numerics = {"dtype": "float32", "precision": "default"}
    options = {"variant": None, "weights": None, "any_weights": False, "batch_size": 64}

    def logits(**settings):
        asked = {**numerics, **settings}
        predictor = load_predictor(load_factors(path), SimpleNamespace(**options, **asked))
        found = predictor.model.config
        assert {name: getattr(found, name) for name in asked} == asked
        return predictor.logits(images)

    adaptation = task.method.adaptation(task.factors, config)
    x = fact_jax.features(fact_jax.ViT(config), base, images, adaptation)
    wanted = np.asarray(x @ task.head["kernel"] + task.head["bias"][None])
    size = np.abs(wanted).max()
    np.testing.assert_allclose(logits(), wanted, rtol=1e-4, atol=1e-4 * size)
    np.testing.assert_allclose(logits(precision="highest"), wanted, rtol=1e-4, atol=1e-4 * size)
    error = np.abs(logits(dtype="bfloat16") - wanted).max() / size
    assert 1e-4 < error < 0.1
    plain = fact_jax.features(model, base, images, adaptation)  # the file's settings matter
    assert (
        np.abs(plain @ task.head["kernel"] + task.head["bias"][None] - wanted).max() > 0.01 * size
    )

    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "pictures" / "a.png")
    out = predict("--factors", path, "--images", tmp_path / "pictures", "--out", tmp_path / "l.npy")
    assert out.returncode == 0, out.stderr
    assert "48 x 48 pixels" in out.stderr
    x = np.asarray(picture.resize((48, 48), Image.Resampling.BICUBIC))[None] / np.float32(255)
    wanted = Predictor(fact_jax.ViT(config), base, load_factors(path)).logits(x)
    np.testing.assert_allclose(np.load(tmp_path / "l.npy"), wanted, rtol=1e-3, atol=1e-4 * size)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of many kinds; two cannot be read. The good ones' paths, in order."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    (folder / "b" / "c").mkdir(parents=True)
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "b" / "c" / "a.png")
    image.convert("L").save(folder / "b" / "[bold]ä.JPG")
    image.convert("CMYK").save(folder / "z.tiff")
    image.convert("P").save(folder / "a.gif")
    (folder / "b" / "broken.jpg").write_bytes(b"no picture")
    whole = (folder / "b" / "c" / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_bytes(b"not looked at")
    return folder


ORDER = ["a.gif", "b/[bold]ä.JPG", "b/broken.jpg", "b/c/a.png", "cut.png", "z.tiff"]


def test_a_folder_is_preprocessed_as_the_file_says_and_bad_pictures_lose_only_themselves(
    mini, trained, pictures, tmp_path
):
    factors = trained / "f.safetensors"
    out = predict("--factors", factors, "--images", pictures, "--out", tmp_path / "l.csv")
    assert out.returncode == 1
    with open(tmp_path / "l.csv", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", *NAMES]
    assert [row[0] for row in rows] == ORDER
    logits = np.array([row[1:] for row in rows], "float32")
    bad = [ORDER.index("b/broken.jpg"), ORDER.index("cut.png")]
    assert np.isnan(logits[bad]).all()
    assert "No logits for 2 of 6" in out.stderr
    assert "b/broken.jpg: it is no image of a known format" in out.stderr
    assert "cut.png: image file is truncated" in out.stderr
    assert "32 x 32 pixels, normalisation 'inception', after JPEG of quality 75" in out.stderr
    # By hand: JPEG round trip, bicubic resize, [-1, 1].
    x = []
    for name in np.delete(ORDER, bad):
        with Image.open(pictures / name) as picture:
            image = picture.convert("RGB")
        image.save(tmp_path / "copy.jpg", quality=75)
        with Image.open(tmp_path / "copy.jpg") as copy:
            image = copy.resize((32, 32), Image.Resampling.BICUBIC)
        x.append(np.asarray(image) / np.float32(127.5) - 1)
    predictor = Predictor(*mini, load_factors(factors), batch_size=4)
    wanted = predictor.logits(np.stack(x).astype("float32"))
    np.testing.assert_allclose(np.delete(logits, bad, 0), wanted, rtol=1e-3, atol=1e-3)


def test_a_side_that_is_no_multiple_of_the_patches_names_the_file(mini, trained):
    from fact_jax.cli import predict as predict_cli

    task = load_factors(trained / "f.safetensors")
    task.metadata["image_size"] = 30
    with pytest.raises(UserError, match=r"Factor file .*f\.safetensors asks for images of 30 x 30"):
        predict_cli.predict(Predictor(*mini, task), Path("docs"), None)


def test_people_get_a_table(trained, pictures):
    factors = trained / "f.safetensors"
    out = predict("--factors", factors, "--images", pictures, "--topk", "2")
    assert out.returncode == 1
    for word in ("file", "class", "probability", "b/[bold]ä.JPG", "unreadable"):
        assert word in out.stdout
    picture = pictures / "b" / "c" / "a.png"
    out = predict("--factors", factors, "--images", picture)
    assert out.returncode == 0, out.stderr
    table = [[c.strip() for c in line.split("│")[1:-1]] for line in out.stdout.splitlines()]
    rows = [row for row in table if len(row) == 3]
    assert [row[0] for row in rows] == ["a.png", "", "", ""]  # all four of its classes
    assert {row[1] for row in rows} == set(NAMES)
    shares = [float(row[2].removesuffix(" %")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_class_names_are_not_read_from_a_device():
    with pytest.raises(UserError, match="/dev/zero cannot be read as text .it is a FIFO"):
        read_class_names(Path("/dev/zero"), 3)


def test_class_names_of_a_file_and_of_none(trained, tmp_path):
    (tmp_path / "names.txt").write_text("eins\nzwei\ndrei\nvier\n")
    arguments = [
        "--variant",
        "vit_mini",
        "--factors",
        trained / "f.pt",
        "--scale",
        "0.1",
        "--images",
        trained / "x.npy",
        "--topk",
        "1",
    ]
    out = predict(*arguments, "--class_names=~/names.txt", HOME=str(tmp_path))
    assert out.returncode == 0, out.stderr
    assert any(name in out.stdout for name in ("eins", "zwei", "drei", "vier"))
    assert "│ 36" in out.stdout
    (tmp_path / "names.txt").write_text("eins\n")
    out = predict(*arguments, "--class_names", tmp_path / "names.txt")
    assert out.returncode == 2
    assert "has 1 lines; the factors have 4 classes" in out.stderr


def test_other_weights_are_refused_unless_they_are_wanted(mini, trained, tmp_path):
    model, base = mini
    other = jax.tree.map(lambda x: x * 1.001, base)
    write_npz(tmp_path / "other.npz", model.config, other)
    arguments = [
        "--factors",
        trained / "f.safetensors",
        "--weights",
        tmp_path / "other.npz",
        "--images",
        trained / "x.npy",
        "--out",
        tmp_path / "l.npy",
    ]
    out = predict(*arguments)
    assert out.returncode == 2
    assert "trained on other weights" in out.stderr
    assert not (tmp_path / "l.npy").exists()
    assert predict(*arguments, "--any_weights").returncode == 0
    assert np.load(tmp_path / "l.npy").shape == (37, 4)


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
    "long": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
}


@pytest.mark.parametrize("content", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_files_that_are_no_arrays_are_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a \.npy file"):
        read_npy(tmp_path / "x.npy", patch_size=8)


def test_an_array_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.npy cannot be read .*it is a FIFO"):
        read_npy(tmp_path / "x.npy", patch_size=8)


def test_a_variant_that_is_not_known_is_the_file_s(trained):
    task = load_factors(trained / "f.safetensors")
    task.metadata["variant"] = "x"
    with pytest.raises(UserError, match=r"safetensors says that its ViT is 'x'.* --variant"):
        variant_of(task, None)
    assert variant_of(task, "vit_mini") == "vit_mini"


def test_a_truncated_array_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 32, 32, 3), "float32"))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cannot be read as a \.npy file"):
        read_npy(tmp_path / "x.npy", patch_size=8)


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


def test_a_format_that_is_no_picture_is_not_opened_whatever_its_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")  # Pillow runs Ghostscript
    pictures = Pictures([tmp_path / "a.png"], 8, "none")
    list(pictures.batches(1))
    assert pictures.unreadable == {0: "it is no image of a known format"}


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


def test_a_decompression_bomb_costs_one_row(tmp_path):
    """A 90 kB PNG of 30,000 x 30,000 pixels."""
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    pictures = Pictures(find_pictures(tmp_path), 8, "none")
    (batch,) = pictures.batches(4)
    assert batch.shape == (2, 8, 8, 3)
    assert "decompression bomb" in pictures.unreadable[0]
    assert list(pictures.unreadable) == [0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--factors is missing"),
        (["--factors=f.pt"], "--images is missing"),
        (["--factors=f.pt", "--images=nowhere"], "nowhere does not exist"),
        (["--factors=f.pt", f"--images={'x' * 300}"], "does not exist"),
        (["--factors=f.pt", "--images=docs", "--out=x.txt"], "must end in .npy or .csv"),
        (["--factors=f.pt", "--images=docs", "--topk=0"], "--topk is 0"),
        (["--factors=f.pt", "--images=docs", "--batch_size=-1"], "--batch_size is -1"),
        (["--factors=f.pt", "--images=docs", "--scale=nan"], "--scale is nan; expected a finite"),
        (["--factors=none.pt", "--images=docs"], "none.pt does not exist"),
        (["--factors=none.pt", "--images=docs", "--out=README.md/x.npy"], "x.npy cannot be writ"),
        (["--factors=none.pt", "--images=~/none"], f"{Path.home()}/none does not exist"),
        (["--factors=~/none.pt", "--images=docs"], f"{Path.home()}/none.pt does not exist"),
        (["--factors=none.pt", "--images=docs", "--out=~/x.txt"], f"{Path.home()}/x.txt must end"),
        (["--factors=README.md", "--images=docs"], "README.md is not a factor file"),
    ],
)
def test_mistakes_are_answered_in_a_paragraph(arguments, words):
    out = predict(*arguments)
    assert out.returncode == 2
    assert words in out.stderr
    assert "Traceback" not in out.stderr


def test_the_factors_of_a_sweep_predict_what_the_sweep_measured(tmp_path):
    """Trained through experiments.vtab; accuracy from the logits of arrays and of pictures."""
    import tensorflow_datasets as tfds

    out = run_command(
        "experiments.vtab",
        "--config",
        "configs/quickstart.py",
        "--workdir",
        tmp_path / "run",
        "--config.tasks=fashion",
        "--config.methods=fact_tk",
        "--config.epochs=1",
        "--config.warmup_epochs=0",
        "--config.eval_limit=200",
        "--config.train_limit=256",
    )
    assert out.returncode == 0, out.stderr
    (result,) = (tmp_path / "run" / "results").glob("*.json")
    accuracy = json.loads(result.read_text())["accuracy"]
    (factors,) = (tmp_path / "run" / "factors").iterdir()
    data = open_task(get_task("fashion"), DataSettings(image_size=32))
    images, labels = data.load("test", 200)
    np.save(tmp_path / "x.npy", np.asarray(normalise(images, "imagenet")))
    out = predict(
        "--variant",
        "vit_mini",
        "--factors",
        factors,
        "--images",
        tmp_path / "x.npy",
        "--out",
        tmp_path / "l.npy",
    )
    assert out.returncode == 0, out.stderr
    logits = np.load(tmp_path / "l.npy")
    assert 100 * np.mean(np.argmax(logits, -1) == labels) == pytest.approx(accuracy)
    (tmp_path / "pictures").mkdir()
    builder = tfds.builder("offline_fashion", try_gcs=False)
    skip = {"image": tfds.decode.SkipDecoding()}
    stored = builder.as_dataset(split="test", decoders=skip, shuffle_files=False)
    for i, example in enumerate(stored.take(200).as_numpy_iterator()):
        (tmp_path / "pictures" / f"{i:03}.png").write_bytes(example["image"])
    out = predict(
        "--factors",
        factors,
        "--images",
        tmp_path / "pictures",
        "--topk",
        "1",
        "--out",
        tmp_path / "p.npy",
    )
    assert out.returncode == 0, out.stderr
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), logits, rtol=1e-4, atol=1e-4)
    assert "Ankle boot" in out.stdout
