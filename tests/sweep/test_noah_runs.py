"""NOAH in the runner: supernet, search, retraining; stopped anywhere; what is stored."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from test_grid import predicted_accuracy, sweep, tiny_config

from fact_jax import VARIANTS, UserError
from fact_jax.backbone.vit import init_base
from fact_jax.cli import local
from fact_jax.files.weights import write_npz
from fact_jax.sweep import trainer as trainer_module
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.stacks import RunStack
from fact_jax.tuning import NOAHSubnet, count_parameters

SEARCH = dict(
    widths=(1, 2),
    supernet_epochs=2,
    supernet_learning_rate=5e-3,
    population=6,
    parents=2,
    mutations=2,
    crossovers=2,
    generations=3,
    limit=1000,
    depths=(1, 3),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_config):
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    write_npz(path, small_config, init_base(small_config, jax.random.key(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "vit_tiny", small_config)
        yield tiny_config(path, "noah", noah=ConfigDict(SEARCH))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """(work directory, result, what was trained, whether programs sample) of a sweep."""
    trained, programs, workdir = [], [], tmp_path_factory.mktemp("whole")
    begin, step = RunStack.__init__, trainer_module.Trainer.step

    def begin_spied(self, trainer, runs, size):
        trained.extend(runs)
        begin(self, trainer, runs, size)

    def step_spied(self, cell, mesh, sampled, method):
        programs.append(sampled)
        return step(self, cell, mesh, sampled, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStack, "__init__", begin_spied)
        patch.setattr(trainer_module.Trainer, "step", step_spied)
        (result,) = sweep(config, workdir)
    return workdir, result, trained, programs


def test_a_search_cannot_measure_the_few_bits_of_its_file(config):
    few = ConfigDict({**config.to_dict(), "factor_bits": 4})
    with pytest.raises(UserError, match=r"config.noah.factor_bits is 4, and NOAH .*noah_subnet"):
        make_plan(few)
    make_plan(ConfigDict({**config.to_dict(), "head_bits": 1}))


def test_three_stages_in_order_on_their_splits(whole):
    _, result, (supernet, final), programs = whole
    assert (supernet.stage, supernet.split, supernet.epochs) == ("supernet", "train800", 2)
    assert (supernet.eval_split, supernet.peak_rate, supernet.choice) == ("val200", 5e-3, None)
    assert (final.stage, final.split, final.epochs) == ("final", "train800val200", 3)
    assert (final.eval_split, final.peak_rate) == ("test", 0.01)
    assert final.choice == result["search"]["best"]
    assert programs == [True, False]  # the second samples nothing


def test_the_result_says_what_was_found_and_how(whole, config):
    _, result, *_ = whole
    found, vit = result["search"], VARIANTS["vit_tiny"]
    subnet = NOAHSubnet.of(found["best"])
    assert all(len(row) == 3 and set(row) <= {0, 1, 2} for row in found["best"])
    assert result["num_factors"] == subnet.count(vit)
    # With the idle prompts at the input, and their positions, the limit's count.
    idle = (found["best"][0][0] + 2) * 24
    assert found["parameters"] == subnet.count(vit) + idle <= 1000
    assert found["families"] == ["prompts", "lora", "adapters"]
    assert len(found["history"]) == 3
    assert found["history"][-1]["best"] == found["fitness"]
    assert [g["tried"] for g in found["history"]][0] == 6
    assert len(result["losses"]) == 3
    assert result["grid_size"] == 1
    assert result["settings"]["supernet_epochs"] == 2


def test_the_factor_file_is_the_subnets(whole, config):
    """Nothing is left of the search, which another would find."""
    workdir, result, *_ = whole
    accuracy, task = predicted_accuracy(config, workdir, result)
    assert accuracy == pytest.approx(result["accuracy"])
    assert task.method == NOAHSubnet.of(result["search"]["best"])
    assert task.metadata["method"] == "noah_subnet"
    assert count_parameters(task.factors) == result["num_factors"]
    path = workdir / "factors" / f"{result['cell']}.safetensors"
    assert result["factor_file_bytes"] == path.stat().st_size
    assert not [p for p in (workdir / "checkpoints").rglob("*") if p.is_file()]


def test_a_given_architecture_is_trained_as_after_a_search(whole, config, tmp_path):
    """So retraining begins anew, and not with the supernet's factors."""
    _, searched, *_ = whole
    names = ("prompts", "lora", "adapters")
    given = dict(zip(names, map(tuple, searched["search"]["best"]), strict=True))
    other = config.copy_and_resolve_references()
    other.methods = "noah_subnet"
    other.noah_subnet = ConfigDict({"per_task": {other.tasks: given}})
    (result,) = sweep(other, tmp_path)
    subnet = NOAHSubnet(**given)
    assert (result["search"], result["num_factors"]) == (None, subnet.count(VARIANTS["vit_tiny"]))
    assert result["losses"] == searched["losses"]
    accuracy, task = predicted_accuracy(other, tmp_path, result)
    assert (task.method, accuracy) == (subnet, pytest.approx(result["accuracy"]))
    (again,) = sweep(other, tmp_path)  # found done
    assert again == result


class Stopped(BaseException):
    pass


def stop_in(monkeypatch, stage, after):
    """Stops a sweep in the middle of this stage; in the search, of a generation."""
    if stage == "search":
        make, count = trainer_module.Trainer.fitness, [0]

        def fitness(self, trained):
            measure = make(self, trained)

            def counted(architecture):
                count[0] += 1
                if count[0] > after:
                    raise Stopped
                return measure(architecture)

            return counted

        monkeypatch.setattr(trainer_module.Trainer, "fitness", fitness)
        return

    class Stopping(local.Bars):
        def start(self, runs, epochs):
            self.stage = runs[0].stage
            super().start(runs, epochs)

        def epoch(self, done, losses, accuracies):
            super().epoch(done, losses, accuracies)
            if (self.stage, done) == (stage, after):
                raise Stopped

    monkeypatch.setattr(local, "Bars", Stopping)


def check_that_another_search_does_not_go_on(config, stopped, workdir):
    """The state of a search belongs to its settings, as checkpoints do."""
    shutil.copytree(stopped, workdir)
    (state,) = (workdir / "checkpoints").rglob("search.json")
    kept = json.loads(state.read_text())
    kept["visited"] = [[[[2, 2, 2]] * 3, 1e6]]  # would be the best of any search that read it
    state.write_text(json.dumps(kept))
    other = config.copy_and_resolve_references()
    other.noah.limit = 900
    (result,) = sweep(other, workdir)
    assert result["search"]["fitness"] <= 100


@pytest.mark.parametrize(("stage", "after"), [("supernet", 1), ("search", 8), ("final", 2)])
def test_stopped_anywhere_it_ends_as_if_never_stopped(
    whole, config, tmp_path, monkeypatch, stage, after
):
    never, expected, *_ = whole
    with monkeypatch.context() as patch:
        stop_in(patch, stage, after)
        with pytest.raises(Stopped):
            sweep(config, tmp_path / "work")
    states = list((tmp_path / "work" / "checkpoints").rglob("search.json"))
    if stage == "supernet":
        assert not states
    else:
        (state,) = states
        done = json.loads(state.read_text())
        assert done["generation"] == (1 if stage == "search" else 3)
        assert done["history"] == expected["search"]["history"][: done["generation"]]
    if stage == "search":
        check_that_another_search_does_not_go_on(config, tmp_path / "work", tmp_path / "other")
    measured, fitness = [], trainer_module.Trainer.fitness

    def counted(self, trained):
        measure = fitness(self, trained)
        return lambda architecture: measured.append(architecture) or measure(architecture)

    monkeypatch.setattr(trainer_module.Trainer, "fitness", counted)
    (result,) = sweep(config, tmp_path / "work")
    tried = expected["search"]["history"][-1]["tried"]
    assert len(measured) == {"supernet": tried, "search": tried - 6, "final": 0}[stage]
    for key in ("search", "accuracy", "losses", "num_factors", "settings"):
        assert result[key] == expected[key], key
    name = f"factors/{result['cell']}.safetensors"
    mine, theirs = load_file(tmp_path / "work" / name), load_file(never / name)
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(mine[key], value)
