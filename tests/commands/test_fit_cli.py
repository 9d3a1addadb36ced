"""`fact-jax fit` as somebody runs it who has pictures and has read `--help`."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_command import run_command

import fact_jax
from fact_jax import UserError
from fact_jax.cli import fitting
from fact_jax.cli.fit import _in_flags
from fact_jax.cli.fitting import FitOptions
from fact_jax.cli.terminal import Console
from fact_jax.sweep.runner import LESS_MEMORY, Runner
from fact_jax.sweep.runs import Failure

COLOURS = {"dark": 30, "light": 220}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Ten pictures each of two shades, in a folder with a space in its name."""
    root, rng = tmp_path_factory.mktemp("own") / "my shades", np.random.default_rng(0)
    for name, mean in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.normal(mean, 10, (12, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def fitted(pictures, tmp_path_factory):
    """What the command printed, and its folder."""
    out = tmp_path_factory.mktemp("fit") / "shades"
    options = ["--images", pictures, "--out", out, "--epochs", "8", "--rank", "2"]
    done = run_command("experiments.fit", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout, out, options


def test_a_folder_becomes_a_task_with_its_accuracy_and_its_files(fitted):
    printed, out, _ = fitted
    assert "2 classes (dark, light); 14 training, 2 validation, 4 test pictures." in printed
    assert "drew test and val from train" in printed
    assert "8 epochs in batches of 16 for each of 3 learning rates" in printed
    assert "(4 test pictures; 95 % interval " in printed
    assert (out / "report" / "index.html").exists()
    (factors,) = (out / "factors").iterdir()
    assert f"experiments.predict --factors={factors} --images=PICTURE" in printed
    task = fact_jax.load_factors(factors)
    assert task.metadata["class_names"] == ["dark", "light"]
    wrong = list(csv.DictReader((out / "wrong.csv").read_text().splitlines()))
    right = round(4 * float(printed.partition("Accuracy: ")[2].partition(" %")[0]) / 100)
    assert len(wrong) == 4 - right


def test_evaluation_takes_no_more_pictures_at_a_time_than_a_part_may_have(fitted):
    """Every batch is filled up; four test pictures would cost as much as 256."""
    _, out, _ = fitted
    assert json.loads((out / "config.json").read_text())["eval_batch_size"] == 8


def test_run_again_it_trains_nothing_and_gives_the_same(fitted, pictures):
    printed, _, options = fitted
    done = run_command("experiments.fit", *options)
    assert done.returncode == 0, done.stderr
    assert "selection" not in done.stdout
    assert done.stdout.partition("Accuracy")[2] == printed.partition("Accuracy")[2]


def test_the_fitted_task_predicts_a_picture(fitted, pictures):
    _, out, _ = fitted
    task = fact_jax.fit(pictures, out, epochs=8, rank=2)
    picture = pictures / "dark" / "3.png"
    prediction = task.predict(picture)
    assert prediction.probabilities.sum() == pytest.approx(1)
    assert sorted(prediction.classes) == ["dark", "light"]
    assert task.predict(picture, topk=1).classes == prediction.classes[:1]
    done = run_command("experiments.predict", "--factors", task.factors, "--images", picture)
    assert f"{100 * prediction.probabilities[0]:.1f} %" in done.stdout
    with pytest.raises(UserError, match="cannot be read as a picture"):
        task.predict(out / "wrong.csv")


def test_the_error_is_that_of_the_number_of_pictures(fitted, pictures):
    _, out, _ = fitted
    accuracy = fact_jax.fit(pictures, out, epochs=8, rank=2).accuracy
    share = accuracy.value / 100
    assert accuracy.error == pytest.approx(100 * (share * (1 - share) / 4) ** 0.5)
    assert accuracy.interval[0] < accuracy.value <= accuracy.interval[1]


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        ("nowhere", {}, "neither a folder nor a .csv file"),
        ("my shades/dark", {}, "has no subfolders|has one class|no folder"),
        ("my shades", {"epochs": 0}, "epochs is 0; expected a whole number of 1 or more"),
        ("my shades", {"widht": 3}, "fit has no option 'widht'; it has variant"),
        ("my shades", {"rank": 0}, "rank"),
        ("my shades", {"select_by": "map"}, "pictures of folder_my_shades have one class"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(pictures, tmp_path, images, options, words):
    with pytest.raises(UserError, match=words):
        fact_jax.fit(pictures.parent / images, tmp_path / "fit", **options)


def test_a_failure_names_no_command_that_fit_does_not_have(pictures, tmp_path, monkeypatch):
    """`--cells` is a flag of sweeps; here the same command goes on."""

    def fail(runner, group, done):
        yield from (Failure(cell.name, UserError("It broke.")) for cell in group.cells)

    monkeypatch.setattr(Runner, "_attempt", fail)
    with pytest.raises(UserError, match="It broke"):
        fact_jax.fit(pictures, tmp_path, epochs=1, console=Console(quiet=True))
    (path,) = (tmp_path / "failures").glob("*.json")
    assert json.loads(path.read_text())["command"] == ""


def test_the_command_has_a_flag_for_each_option():
    assert set(FitOptions.__dataclass_fields__) <= set(_flags())


def _flags():
    from test_commands import FLAGS

    return FLAGS["fit"].split()


def test_names_that_no_task_can_have_get_a_link(pictures, tmp_path):
    folder, task = fitting._place(pictures, tmp_path)
    assert (folder / "my_shades").resolve() == pictures
    assert task == "folder_my_shades"
    shots = tmp_path / "birds_4shot"
    shots.mkdir()
    assert fitting._place(shots, tmp_path)[1] == "folder_birds_4_shot"


def test_an_out_of_other_pictures_is_refused(pictures, tmp_path):
    """Two folders of one name that no task can have: the link would still lead to the first."""
    other = tmp_path / "other" / pictures.name
    other.mkdir(parents=True)
    fitting._place(pictures, tmp_path / "out")
    fitting._place(pictures, tmp_path / "out")
    with pytest.raises(UserError, match="is of other pictures, those in .*my shades. Give another"):
        fitting._place(other, tmp_path / "out")
    (tmp_path / "out" / "pictures" / "my_shades").unlink()
    (tmp_path / "out" / "pictures" / "my_shades").write_text("")
    with pytest.raises(UserError, match="is of other pictures"):
        fitting._place(other, tmp_path / "out")


def test_an_out_among_the_pictures_is_refused(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    with pytest.raises(UserError, match="--out fit lies in the folder of the pictures"):
        fact_jax.fit(".")


def test_a_class_without_a_test_picture_is_named(pictures, tmp_path):
    """One picture of a class is trained on; the accuracy says nothing of it."""
    rare = tmp_path / "rare"
    for name, number in (("dark", 6), ("light", 6), ("odd", 1)):
        (rare / name).mkdir(parents=True)
        for i in range(number):
            source = pictures / ("light" if name == "odd" else name) / f"{i}.png"
            (rare / name / f"{i}.png").write_bytes(source.read_bytes())
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    fact_jax.fit(rare, tmp_path / "out", epochs=1, rank=1, console=console)
    assert "No test picture is of odd: nothing is known of it." in screen.getvalue()


def test_messages_of_a_sweep_name_this_command_s_flags():
    text = "--config.epochs is 0. config.skip_damaged=True leaves them out. Use another --workdir."
    assert _in_flags(text) == "--epochs is 0. --skip_damaged leaves them out. Use another --out."
    file = "/models/dino/config.json says 6 heads; config.json, too."
    assert _in_flags(file) == file
    memory = f"Try a smaller --config.fact_tt.rank (it is 999), {LESS_MEMORY}."
    assert _in_flags(memory) == "Try a smaller --rank (it is 999), a smaller --batch_size."


def test_what_is_no_path_is_refused(fitted, pictures):
    _, out, _ = fitted
    task = fact_jax.fit(pictures, out, epochs=8, rank=2)
    with pytest.raises(UserError, match="takes the path of a picture, and got a list"):
        task.predict([pictures / "dark" / "3.png"])
