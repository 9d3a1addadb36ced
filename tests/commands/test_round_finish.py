"""`round --bits --finish_epochs` on the factors of a sweep, in this process."""

import dataclasses
import json

import pytest

from configs import quickstart
from fact_jax import Combination, FacTTT, UserError, VPTDeep, load_factors
from fact_jax.algebra.quantise import Bits
from fact_jax.cli.finish import RATE_SHARE, Origin, finish
from fact_jax.cli.local import run_sweep
from fact_jax.cli.round import bits_of
from fact_jax.cli.terminal import Console
from fact_jax.serving.rounding import Target, round_task
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Failure

CELL = "digits-fact_tt-seed0"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config, workdir = quickstart.get_config(), tmp_path_factory.mktemp("sweep")
    config.tasks, config.methods, config.epochs, config.train_limit = "digits", "fact_tt", 1, 64
    config.eval_limit, config.warmup_epochs, config.fact_tt.rank = 100, 0, 4
    run_sweep(config, str(workdir), Console(quiet=True))
    return workdir


def test_rounded_factors_are_trained_with_the_settings_of_their_sweep(workdir, tmp_path):
    path, out = workdir / "factors" / f"{CELL}.safetensors", tmp_path / "small.safetensors"
    rounded = round_task(load_factors(path), Target(rank=2, bits=Bits(4, 1)))
    assert rounded.rounded.bound is None
    out.write_bytes(rounded.content)
    result = finish(path, out, 2, Bits(4, 1), Console(quiet=True))
    task, before = load_factors(out), Origin.of(path).result
    assert (task.method.rank, task.metadata["bits"]) == (2, [4, 1])
    assert out.stat().st_size == result.factor_file_bytes < 0.2 * path.stat().st_size
    assert len(result.losses) == 2
    names = ("train_limit", "eval_limit", "batch_size", "normalisation", "drop_path_rate")
    assert {n: result.settings[n] for n in names} == {n: before.settings[n] for n in names}
    assert result.learning_rate == RATE_SHARE * before.learning_rate


def test_a_failure_names_no_command_that_round_does_not_have(workdir, tmp_path, monkeypatch):
    """`--cells` is a flag of sweeps; here the same command goes on."""

    def fail(runner, group, done):
        yield from (Failure(cell.name, UserError("It broke.")) for cell in group.cells)

    monkeypatch.setattr(Runner, "_attempt", fail)
    path, out = workdir / "factors" / f"{CELL}.safetensors", tmp_path / "small.safetensors"
    out.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="It broke"):
        finish(path, out, 1, None, Console(quiet=True))
    (record,) = tmp_path.glob("*-finish-*/failures/*.json")
    assert json.loads(record.read_text())["command"] == ""
    assert out.read_bytes() == path.read_bytes()


def test_a_finish_has_one_rank_and_factors_of_its_own(workdir, tmp_path):
    """It has them also where the training had phases of larger ranks, or a dictionary."""
    path = workdir / "factors" / f"{CELL}.safetensors"
    origin = Origin.of(path)
    settings = {**origin.result.settings, "start_ranks": [8], "round_epochs": [1]}
    settings |= {"shared": "learn", "epochs": 2}
    origin = origin._replace(result=dataclasses.replace(origin.result, settings=settings))
    (cell,) = make_plan(origin.sweep(load_factors(path), 3, None, tmp_path))
    assert (cell.settings.start_ranks, cell.settings.round_epochs) == ((), ())
    assert (cell.settings.shared, cell.settings.start_from) == ("", str(tmp_path))


def test_a_combination_is_finished_with_all_its_parts(workdir, tmp_path):
    path = workdir / "factors" / f"{CELL}.safetensors"
    both = Combination((("fact_tt", FacTTT(4)), ("vpt_deep", VPTDeep(2))), scale=0.5)
    task = load_factors(path)._replace(method=both)
    (cell,) = make_plan(Origin.of(path).sweep(task, 3, Bits(4, 1), tmp_path))
    assert cell.method.parts == both.parts
    assert cell.candidates[0].scale == 0.5
    assert cell.recipe.bits == Bits(4, 1)


def test_a_file_outside_of_a_work_directory_has_no_settings_to_go_on_with(workdir, tmp_path):
    other = tmp_path / f"{CELL}.safetensors"
    other.write_bytes((workdir / "factors" / other.name).read_bytes())
    with pytest.raises(UserError, match="does not lie in the factors/ of a work directory"):
        Origin.of(other)


@pytest.mark.parametrize("text", ["4", "4/1/1", "a/b", "4/3"])
def test_bits_are_two_numbers(text):
    with pytest.raises(UserError, match="--bits is|cannot have 3 bits"):
        bits_of(text)
    assert bits_of("") is None
    assert bits_of("4/1") == Bits(4, 1)
