"""`python -m experiments.bank` as a user runs it, on the bundled ViT."""

import sys
import types

import numpy as np
import pytest
from run_command import run_command
from written_factors import written

from fact_jax import FacTTK, FacTTT, Linear, LoRA, get_variant, load_factors, load_pack
from fact_jax.algebra import Increments
from fact_jax.cli import main
from fact_jax.command_line import this_command


def run_bank(*arguments):
    return run_command("experiments.bank", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("tasks"), get_variant("vit_mini")
    methods = {"lora": LoRA(1), "tt": FacTTT(2, 0.5), "linear": Linear()}
    for name, method in methods.items():
        # The type that it was computed in makes it no other network.
        of_task = config.replace(dtype="bfloat16") if name == "tt" else config
        written(folder / f"{name}.safetensors", method, of_task, variant="vit_mini")
    return folder


def test_tasks_get_a_dictionary_and_go_into_a_pack_and_out_again(folder, tmp_path):
    out, pack, back = tmp_path / "shared", tmp_path / "all.pack", tmp_path / "back"
    arguments = ["--factors", folder, "--out", out, "--rank", 3, "--method", "fact_tk"]
    done = run_bank("share", *arguments, "--bits", "4/1")
    assert done.returncode == 0, done.stderr
    assert "Left out: linear.safetensors" in done.stdout
    assert "Wrote 2 tasks and their dictionary" in done.stdout
    task = load_factors(out / "tt.safetensors")
    assert task.method == FacTTK(3)
    assert task.metadata["bits"] == [4, 1]
    error = task.metadata["rounded"]["error"]
    assert f"{error:.3g}" in done.stdout
    trained = load_factors(folder / "tt.safetensors")
    wanted, stored = (Increments.of(t.method, t.factors, task.config) for t in (trained, task))
    assert (wanted - stored).norm / wanted.norm == pytest.approx(error, rel=1e-3)
    done = run_bank("pack", "--factors", out, "--out", pack)
    assert done.returncode == 0, done.stderr
    assert f"2 tasks in {pack.stat().st_size:,} bytes" in " ".join(done.stdout.split())
    np.testing.assert_array_equal(load_pack(pack)["tt"].factors["P"], task.factors["P"])
    done = run_bank("unpack", "--pack", pack, "--out", back)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in back.iterdir()
    }


def test_tasks_learn_a_dictionary(tmp_path):
    out, workdir = tmp_path / "two.dictionary", tmp_path / "work"
    changes = ["methods=fact_tk", "tasks=digits,fashion", "fact_tk.rank=2", "epochs=3"]
    changes += ["train_limit=64", "eval_limit=100"]
    settings = [f"--config.{change}" for change in changes]
    done = run_bank("train", *settings, "--workdir", workdir, "--dictionary", out)
    assert done.returncode == 0, done.stderr
    task = load_factors(workdir / "factors" / "digits-fact_tk-seed0.safetensors")
    assert out.read_bytes() == task.dictionary.content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pakc"], "'pakc' is no action of bank: give one of bank train"),
        ([], "'' is no action of bank"),
        (["share", "--factors=FOLDER", "--out=OUT"], "--rank is missing"),
        (["share", "--factors=FOLDER", "--out=FOLDER", "--rank=2"], "is the folder of --factors"),
        (["pack", "--factors=FOLDER", "--out=OUT.zip"], "expected a name that ends in .pack"),
        (["pack", "--out=OUT.pack"], "--factors is missing"),
        (["pack", "--factors=nowhere", "--out=OUT.pack"], "is no folder"),
        (["unpack", "--pack=FOLDER/tt.safetensors", "--out=OUT"], "is not a pack of fact-jax"),
        (["train", "--dictionary=OUT.dictionary"], "one method and one seed, and the config has"),
        (["train", "--config.methods=fact_tt"], "expected a name that ends in .dictionary"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder, tmp_path, arguments, words):
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "new")}
    for name, path in places.items():
        arguments = [word.replace(name, path) for word in arguments]
    done = run_bank(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def test_a_command_of_two_words_begins_with_both(monkeypatch):
    begun = []
    monkeypatch.setattr(main.process, "run", lambda *of: begun.append(sys.argv))
    for argv in (["fact-jax", "bank", "pack", "--out=x"], ["fact-jax", "bank pack", "--out=x"]):
        monkeypatch.setattr(sys, "argv", argv)
        main.main()
    assert begun == 2 * [["fact-jax bank pack", "--out=x"]]
    spec = types.SimpleNamespace(name="experiments.bank")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert this_command() == ["python", "-m", "experiments.bank", "pack"]
