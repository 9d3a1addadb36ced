"""Sweeps that go on from factor files, and sweeps that write small ones."""

import numpy as np
import pytest

from configs import quickstart
from fact_jax import Predictor, UserError, load_factors, load_vit, normalise
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.sweep.plan import make_plan


def config(**changes):
    c = quickstart.get_config()
    c.tasks, c.methods, c.epochs, c.train_limit, c.eval_limit = "digits", "fact_tt", 1, 64, 100
    c.warmup_epochs, c.fact_tt.rank = 0, 2
    for name, value in changes.items():
        c.update_from_flattened_dict({name: value})
    return c


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start")
    run_sweep(config(), str(workdir), Console(quiet=True))
    return workdir / "factors"


def test_a_sweep_goes_on_from_factors_and_its_accuracy_is_that_of_its_small_file(start, tmp_path):
    changes = {"start_from": str(start), "factor_bits": 4, "head_bits": 1, "learning_rate": 0.0}
    changes["weight_decay"] = 0.0
    sweep = config(**changes)
    (result,) = run_sweep(sweep, str(tmp_path), Console(quiet=True))
    before, after = (
        load_factors(folder / "digits-fact_tt-seed0.safetensors")
        for folder in (start, tmp_path / "factors")
    )
    assert after.metadata["bits"] == [4, 1]
    assert result.factor_file_bytes < 0.2 * (start / after.path.name).stat().st_size
    # The rate of an epoch is never quite zero.
    np.testing.assert_allclose(after.factors["U"], before.factors["U"], atol=0.05)
    data = open_task(get_task("digits"), DataSettings(image_size=32))
    images, labels = next(iter(data.stream("test", 100, 100)))
    model, base = load_vit("vit_mini")
    logits = Predictor(model, base, after).logits(np.asarray(normalise(images, "imagenet")))
    assert result.accuracy == 100 * (logits.argmax(-1) == labels).mean()
    assert run_sweep(sweep, str(tmp_path), Console(quiet=True)) == [result]  # nothing runs again
    path = start / after.path.name
    content = path.read_bytes()
    try:
        path.write_bytes(content + b" ")
        with pytest.raises(UserError, match="start_sha256 was"):
            run_sweep(sweep, str(tmp_path), Console(quiet=True))
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fact_tt.rank": 3}, "Training goes on with the same method"),
        ({"seeds": (1,)}, "digits-fact_tt-seed1.safetensors, which cannot be read"),
        ({"fact_tt.learning_rates": (0.1, 0.2)}, "2 candidates to choose from"),
    ],
)
def test_factors_that_do_not_fit_are_refused(start, tmp_path, changes, words):
    sweep = config(start_from=str(start), **changes)
    with pytest.raises(UserError, match=words):
        run_sweep(sweep, str(tmp_path), Console(quiet=True))


def test_sweeps_without_the_new_settings_are_those_of_before():
    (cell,) = make_plan(config())
    assert not {"start_from", "factor_bits", "head_bits"} & cell.all_settings.keys()
