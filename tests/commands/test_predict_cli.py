"""`python -m experiments.predict` as a user runs it, on the bundled ViT."""

import csv
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from devices import on_host_devices
from PIL import Image
from run_command import run_command
from written_factors import written

import fact_jax
from fact_jax import FacTTT, UserError, load_vit
from fact_jax.cli import predict as predict_cli
from fact_jax.cli.arguments import variant_of
from fact_jax.cli.predict import load_predictor
from fact_jax.files.factors import to_bytes
from fact_jax.files.load import load_factors
from fact_jax.files.reference import reference_tensors
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum, write_npz
from fact_jax.serving import predict as predict_module
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
    method, entries = FacTTT(4, 0.1), {"variant": "vit_mini", "weights_sha256": checksum(base)}
    entries |= {"class_names": NAMES, "image_size": 32, "normalisation": "inception"}
    tree = written(folder / "f.safetensors", method, model.config, 4, jpeg_quality=75, **entries)
    tensors = reference_tensors(method, tree["factors"], tree["head"])
    (folder / "f.pt").write_bytes(torch_bytes(tensors))
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


def close(logits, expected):
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("devices", "arguments"),
    [
        (1, ["f.safetensors", "--batch_size=8"]),
        (4, ["f.safetensors", "--batch_size=32"]),
        (1, ["f.pt", "--method=tt", "--scale=0.1"]),
    ],
)
def test_an_array_file_gives_logits_whatever_the_file_batch_size_and_devices(
    trained, expected, tmp_path, devices, arguments
):
    factors, *more = arguments
    out = predict(
        *("--variant=vit_mini", "--factors", trained / factors, *more),
        *("--images", trained / "x.npy", "--out", tmp_path / "l.npy"),
        **on_host_devices(devices),
    )
    assert out.returncode == 0, out.stderr
    logits = np.load(tmp_path / "l.npy")
    assert logits.dtype == np.float32
    close(logits, expected)
    assert out.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["l.npy"]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("batches", "rows"),
    [([1], [1]), ([5], [5]), ([16, 16, 5], [16, 16, 16]), ([3, 16, 5], [3, 16, 16])],
)
def test_only_a_shorter_last_batch_is_padded(monkeypatch, mini, trained, expected, batches, rows):
    predictor = Predictor(*mini, load_factors(trained / "f.safetensors"), batch_size=10**12)
    program, shapes = predict_module.logits, []
    monkeypatch.setattr(
        predict_module, "logits", lambda *a: shapes.append(len(a[-1])) or program(*a)
    )
    images = np.load(trained / "x.npy")[: sum(batches)]
    logits = list(predictor.stream(np.split(images, np.cumsum(batches)[:-1])))
    assert [len(x) for x in logits] == batches
    assert shapes == rows
    np.testing.assert_allclose(np.concatenate(logits), expected[: sum(batches)], atol=1e-3)
    assert predictor.logits(images[:0]).shape == (0, 4)


def test_the_forward_pass_is_the_file_s_and_the_numerics_the_flags(mini, trained, tmp_path):
    """GELU, epsilon and image size of the training; --dtype and --precision."""
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
    options = {"variant": None, "weights": None, "any_weights": False, "batch_size": 64}

    def logits(**settings):
        asked = {"dtype": "float32", "precision": "default", **settings}
        predictor = load_predictor(load_factors(path), SimpleNamespace(**options, **asked))
        assert {name: getattr(predictor.model.config, name) for name in asked} == asked
        return predictor.logits(images)

    def logits_of(vit):
        adaptation = task.method.adaptation(task.factors, config)
        x = fact_jax.features(vit, base, images, adaptation)
        return np.asarray(x @ task.head["kernel"] + task.head["bias"][None])

    wanted = logits_of(fact_jax.ViT(config))
    size = np.abs(wanted).max()
    close(logits(), wanted)
    close(logits(precision="highest"), wanted)
    assert 1e-4 < np.abs(logits(dtype="bfloat16") - wanted).max() / size < 0.1
    assert np.abs(logits_of(model) - wanted).max() > 0.01 * size  # the file's settings matter


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
    task = load_factors(trained / "f.safetensors")
    task.metadata["image_size"] = 30
    with pytest.raises(UserError, match=r"Factor file .*f\.safetensors asks for images of 30 x 30"):
        predict_cli.predict(Predictor(*mini, task), Path("docs"), None)


def test_people_get_a_table(trained, pictures):
    factors = trained / "f.safetensors"
    out = predict("--factors", factors, "--images", pictures, "--topk=2")
    assert out.returncode == 1
    for word in ("file", "class", "probability", "b/[bold]ä.JPG", "unreadable"):
        assert word in out.stdout
    out = predict("--factors", factors, "--images", pictures / "b" / "c" / "a.png")
    assert out.returncode == 0, out.stderr
    table = [[c.strip() for c in line.split("│")[1:-1]] for line in out.stdout.splitlines()]
    files, names, shares = zip(*[row for row in table if len(row) == 3], strict=True)
    assert files == ("a.png", "", "", "")  # all four of its classes
    assert set(names) == set(NAMES)
    numbers = [float(share.removesuffix(" %")) for share in shares]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == pytest.approx(100, abs=0.3)


def test_class_names_of_a_file_and_of_none(trained, tmp_path):
    arguments = ["--variant=vit_mini", "--factors", trained / "f.pt", "--images"]
    arguments += [trained / "x.npy", "--topk=1"]
    (tmp_path / "names.txt").write_text("eins\nzwei\ndrei\nvier\n")
    out = predict(*arguments, "--scale=0.1", "--class_names=~/names.txt", HOME=str(tmp_path))
    assert out.returncode == 0, out.stderr
    assert any(name in out.stdout for name in ("eins", "zwei", "drei", "vier"))
    assert "│ 36" in out.stdout
    (tmp_path / "names.txt").write_text("eins\n")
    for more, words in (
        (["--scale=0.1", "--class_names", tmp_path / "names.txt"], "has 1 lines; the factors have"),
        ([], "--scale"),
    ):
        out = predict(*arguments, *more)
        assert out.returncode == 2
        assert words in out.stderr


def test_other_weights_are_refused_unless_they_are_wanted(mini, trained, tmp_path):
    model, base = mini
    other = jax.tree.map(lambda x: x * 1.001, base)
    write_npz(tmp_path / "other.npz", model.config, other)
    arguments = [
        *("--factors", trained / "f.safetensors", "--weights", tmp_path / "other.npz"),
        *("--images", trained / "x.npy", "--out", tmp_path / "l.npy"),
    ]
    out = predict(*arguments)
    assert out.returncode == 2
    assert "trained on other weights" in out.stderr
    assert not (tmp_path / "l.npy").exists()
    assert predict(*arguments, "--any_weights").returncode == 0
    assert np.load(tmp_path / "l.npy").shape == (37, 4)


def test_a_variant_that_is_not_known_is_the_file_s(trained):
    task = load_factors(trained / "f.safetensors")
    task.metadata["variant"] = "x"
    with pytest.raises(UserError, match=r"safetensors says that its ViT is 'x'.* --variant"):
        variant_of(task, None)
    assert variant_of(task, "vit_mini") == "vit_mini"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--factors is missing"),
        (["--factors=f.pt"], "--images is missing"),
        (["--factors=f.pt", "--images=nowhere"], "nowhere does not exist"),
        (["--factors=f.pt", f"--images={'x' * 300}"], "does not exist"),
        (["--factors=f.pt", "--images=docs", "--out=x.txt"], "must end in .npy or .csv"),
        (["--factors=f.pt", "--images=docs", "--topk=0"], "--topk is 0"),
        (["--factors=f.pt", "--images=docs", "--scale=nan"], "--scale is nan; expected a finite"),
        (["--factors=none.pt", "--images=docs", "--out=README.md/x.npy"], "x.npy cannot be writ"),
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
