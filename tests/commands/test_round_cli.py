"""`python -m experiments.round` as a user runs it, on the bundled ViT."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_command import run_command
from written_factors import assert_same, written

from fact_jax import FacTTT, Linear, LoRA, get_variant, load_factors


def run_round(*arguments):
    return run_command("experiments.round", *arguments)


def test_a_task_and_a_folder_of_tasks(tmp_path):
    config, folder = get_variant("vit_mini"), tmp_path / "tasks"
    folder.mkdir()
    trees = {
        name: written(folder / f"{name}.safetensors", method, config, variant="vit_mini")
        for name, method in {"tt": FacTTT(6, 0.5), "lora": LoRA(2)}.items()
    }
    written(folder / "linear.safetensors", Linear(), config, variant="vit_mini")
    (folder / "cut.safetensors").write_bytes((folder / "tt.safetensors").read_bytes()[:999])
    one, out = tmp_path / "one.safetensors", tmp_path / "new" / "out"
    done = run_round("--factors", folder / "tt.safetensors", "--out", one, "--rank", 3)
    assert done.returncode == 0, done.stderr
    task = load_factors(one)
    assert task.method == FacTTT(3, 0.5)
    np.testing.assert_array_equal(task.head["kernel"], trees["tt"]["head"]["kernel"])
    assert task.metadata["variant"] == "vit_mini"
    assert task.metadata["rounded"]["method_settings"] == {"rank": 6, "scale": 0.5}
    assert f"{task.metadata['rounded']['error']:.3g}" in done.stdout
    done = run_round("--factors", folder / "tt.safetensors", "--out", one, "--bytes", 50_000)
    assert done.returncode == 0, done.stderr
    assert_same(load_factors(one), trees["tt"])
    done = run_round("--factors", folder, "--out", out, "--bytes", 15_000, "--method", "fact_tt")
    assert done.returncode == 0, done.stderr
    assert "The increments are all zero" in done.stdout
    assert "cut.safetensors" in done.stdout
    assert not (out / "linear.safetensors").exists()
    for name in trees:
        task = load_factors(out / f"{name}.safetensors")
        assert isinstance(task.method, FacTTT)
        size = task.path.stat().st_size
        wider = 2 * 128 + 72 * (2 * task.method.rank + 1)
        assert size <= 15_000 < size + 4 * wider + 300


def test_pictures_say_what_rounding_keeps(tmp_path):
    file, out, folder = (
        tmp_path / "f.safetensors",
        tmp_path / "g.safetensors",
        tmp_path / "pictures",
    )
    written(file, FacTTT(6, 0.5), get_variant("vit_mini"), variant="vit_mini")
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((40, 40), 90).convert("RGB").save(folder / f"{i}.png")
    (folder / "damaged.png").write_bytes(b"no picture")
    done = run_round("--factors", file, "--out", out, "--rank", 3, "--images", folder)
    assert done.returncode == 0, done.stderr
    rounded = load_factors(out).metadata["rounded"]
    assert f"{rounded['error']:.3g} ({rounded['weighted_error']:.3g})" in done.stdout
    told = "".join(done.stdout.split())  # the path is longer than a line
    assert f"1pictureleftout:{folder / 'damaged.png'}:" in told
    done = run_round(
        *("--factors", file, "--out", out, "--rank", 3, "--images", folder / "damaged.png")
    )
    assert done.returncode == 2
    assert "None of the pictures can be read" in done.stderr
    done = run_round("--factors", file, "--out", out, "--rank", 3, "--images", tmp_path / "none")
    assert "none does not exist" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--factors", "F"], "--out is missing"),
        (["--factors", "F", "--out", "g.npz"], "must end in .safetensors"),
        (["--factors", "F", "--out", "F", "--rank", 1, "--bytes", 1], "--rank and --bytes"),
        (["--factors", "F", "--out", "G.safetensors", "--rank", 0], "--rank is 0"),
        (["--factors", "F", "--out", "G.safetensors", "--bytes", 100], "rank 1 takes up to"),
        (["--factors", "F", "--out", "G.safetensors", "--bits", "4/1", "--images", "."], "alone"),
        (["--factors", "F", "--out", "F"], "which it would replace"),
        (["--factors", "docs", "--out", "G"], "holds no factor file"),
    ],
)
def test_mistakes_are_answered_in_a_paragraph(tmp_path: Path, arguments, words):
    file = tmp_path / "f.safetensors"
    written(file, FacTTT(2), get_variant("vit_mini"), variant="vit_mini")
    names = {"F": file, "G": tmp_path / "g", "G.safetensors": tmp_path / "g.safetensors"}
    out = run_round(*(names.get(a, a) if isinstance(a, str) else a for a in arguments))
    assert out.returncode == 2
    assert words in out.stderr
    assert "Traceback" not in out.stderr
