"""Candidates of a grid, and combinations: plan, choice on validation data, results, errors."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from configs import quickstart
from fact_jax import VARIANTS, UserError, load_factors, load_vit
from fact_jax.backbone.vit import init_base
from fact_jax.cli.local import run_sweep
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.files.weights import write_npz
from fact_jax.images.normalise import normalise
from fact_jax.serving.predict import Predictor
from fact_jax.sweep.plan import Candidate, make_plan
from fact_jax.tuning import NOAH, Combination, FacTTT, LoRA, NOAHSubnet, VPTDeep
from fact_jax.tuning.registry import build, describe

SIZE = 16


@pytest.fixture
def tiny(tmp_path, monkeypatch, small_config):
    """``tiny(methods, **changes)``: a config on the offline digits and a ViT of 24 by 3."""
    monkeypatch.setitem(VARIANTS, "vit_tiny", small_config)
    write_npz(tmp_path / "tiny.npz", small_config, init_base(small_config, jax.random.key(0)))

    def make(methods, **changes):
        return tiny_config(tmp_path / "tiny.npz", methods, **changes)

    return make


def tiny_config(weights, methods, **changes):
    config = quickstart.get_config()
    config.update(
        variant="vit_tiny",
        weights=str(weights),
        image_size=SIZE,
        tasks="digits",
        methods=methods,
        epochs=3,
        warmup_epochs=0,
        batch_size=16,
        eval_batch_size=64,
        learning_rate=0.01,
        train_limit=48,
        eval_limit=60,
    )
    for name in methods.replace("+", ",").split(","):
        config[name] = ConfigDict({})
    config.update(changes)
    return config


def sweep(config, workdir):
    """The results, with what lies in the work directory equal to them."""
    results = run_sweep(config, str(workdir), Console(quiet=True))
    for result in results:
        path = workdir / "results" / f"{result['cell']}.json"
        assert json.loads(path.read_text()) == json.loads(json.dumps(result.to_json()))
    return results


def predicted_accuracy(config, workdir, result):
    """The accuracy of `Predictor` with the stored factors on the test images, and the task."""
    task = load_factors(workdir / "factors" / f"{result['cell']}.safetensors")
    model, base = load_vit(config.variant, config.weights, **task.forward_settings)
    data = open_task(get_task(result["task"]), DataSettings(image_size=config.image_size))
    images, labels = data.load("test", result["num_test"])
    logits = Predictor(model, base, task).logits(np.asarray(normalise(images, "imagenet")))
    return 100 * np.mean(logits.argmax(-1) == labels), task


def cell_of(config):
    (cell,) = make_plan(config)
    return cell


GRID = {"scales": (0.1, 1.0), "learning_rates": (1e-3, 1e-2), "weight_decays": (0.0, 0.1)}


def test_a_grid_is_scales_times_rates_times_decays(tiny):
    cell = cell_of(tiny("fact_tt", fact_tt=ConfigDict({"rank": 4, **GRID})))
    assert len(cell.candidates) == len(set(cell.candidates)) == 8
    assert set(cell.candidates) == {
        Candidate(s, r, d)
        for s in GRID["scales"]
        for r in GRID["learning_rates"]
        for d in GRID["weight_decays"]
    }
    assert {name: tuple(cell.as_stored[name]) for name in GRID} == GRID
    assert cell.method == FacTTT(4)


def test_labels_name_what_the_candidates_differ_in(tiny):
    cell = cell_of(tiny("fact_tt", fact_tt=ConfigDict({"rank": 4, **GRID})))
    assert cell.label(Candidate(0.1, 1e-3, 0.0)) == "scale=0.1, learning_rate=0.001, weight_decay=0"
    assert len({cell.label(c) for c in cell.candidates}) == 8
    rates = cell_of(tiny("fact_tt", fact_tt=ConfigDict({"learning_rates": (0.1, 0.2)})))
    assert [rates.label(c) for c in rates.candidates] == ["learning_rate=0.1", "learning_rate=0.2"]


def test_without_lists_the_one_candidate_is_the_configs(tiny):
    config = tiny("fact_tt", weight_decay=0.03)
    assert cell_of(config).candidates == (Candidate(1.0, 0.01, 0.03),)
    config.fact_tt = ConfigDict({"scale": 5.0, "learning_rate": 0.2, "weight_decay": 0.0})
    assert cell_of(config).candidates == (Candidate(5.0, 0.2, 0.0),)
    config.fact_tt = ConfigDict({"scales": (2.0, 2.0, 2), "learning_rates": (0.3, 0.3)})
    assert cell_of(config).candidates == (Candidate(2.0, 0.3, 0.03),)  # each once


def test_a_method_and_a_task_may_have_their_own_settings(tiny):
    config = tiny("fact_tt,lora", tasks="digits,fashion", epochs=7, optimizer="adamw")
    config.lora = ConfigDict(
        {
            "rank": 3,
            "epochs": 9,
            "optimizer": "sgd",
            "decay_vectors": False,
            "drop_path_rate": 0.0,
            "eval_every": 2,
            "learning_rates": (0.5, 0.25),
            "per_task": {"fashion": {"rank": 5, "learning_rates": (0.125,)}},
        }
    )
    cells = {(c.method_name, c.task): c for c in make_plan(config)}
    fact, digits, fashion = (
        cells[key] for key in (("fact_tt", "digits"), ("lora", "digits"), ("lora", "fashion"))
    )
    assert (fact.settings.epochs, fact.recipe.optimizer) == (7, "adamw")
    assert fact.recipe.decay_vectors
    assert (digits.settings.epochs, digits.recipe.optimizer) == (9, "sgd")
    assert not digits.recipe.decay_vectors
    assert (digits.settings.drop_path_rate, digits.settings.eval_every) == (0.0, 2)
    assert [c.learning_rate for c in digits.candidates] == [0.5, 0.25]
    assert (digits.method, fashion.method) == (LoRA(3), LoRA(5))
    assert [c.learning_rate for c in fashion.candidates] == [0.125]


@pytest.mark.parametrize(
    ("methods", "settings", "changes", "words"),
    [
        (
            "fact_tt",
            {"learning_rates": (0.1, 0.2)},
            {"protocol": "paper"},
            r"learning_rates has 2 candidates, but protocol 'paper'.*learning_rates='\(0.1,\)'",
        ),
        ("fact_tt", {"weight_decays": (0.1, 0.2)}, {"protocol": "paper"}, "weight_decays has 2"),
        ("fact_tt", {"dropout_rates": (0.1,)}, {}, "has no setting 'dropout_rates'.*weight_decays"),
        ("fact_tt", {}, {"optimizer": "adam"}, "optimizer is 'adam'; expected 'adamw' or 'sgd'"),
        ("fact_tt+vpt", {}, {}, "Unknown method 'vpt'"),
        ("fact_tt+fact_tt", {}, {}, "names a method twice"),
        ("full+bitfit", {}, {}, "config.full.bitfit: Two of the combined methods train the same"),
        ("fact_tt+lora", {"scales": (0.1, 1.0)}, {}, "one, such as --config.fact_tt.scales=0.1,"),
        ("fact_tt+lora", {"ranks": 3}, {}, "has no setting 'ranks'"),
    ],
)
def test_grids_and_combinations_that_make_no_sense_are_refused(
    tiny, methods, settings, changes, words
):
    config = tiny(methods, fact_tt=ConfigDict(settings), **changes)
    with pytest.raises(UserError, match=words):
        [cell.recipe for cell in make_plan(config)]


def test_a_method_without_settings_is_not_called_unknown(tiny):
    config = tiny("fact_tt")
    config.methods = "fact_tt+ssf"
    with pytest.raises(UserError, match="has 'ssf', but this config has no settings .*compare.py"):
        make_plan(config)


def test_candidates_reach_the_program(tiny, tmp_path):
    """A grid's final training is that of its choice alone, and the settings say the grid."""
    settings = {"rank": 2, "learning_rates": (0.0, 0.02), "scale": 2.0}
    (grid,) = sweep(tiny("fact_tt", fact_tt=ConfigDict(settings)), tmp_path / "grid")
    assert grid["settings"]["learning_rates"] == [0.0, 0.02]
    alone = ConfigDict({"rank": 2, "learning_rate": grid["learning_rate"], "scale": 2.0})
    (single,) = sweep(tiny("fact_tt", fact_tt=alone), tmp_path / "single")
    assert (grid["grid_size"], single["grid_size"]) == (2, 1)
    assert single["selection"] == {}
    assert grid["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert set(grid["selection"]) == {"learning_rate=0", "learning_rate=0.02"}


def test_the_weight_of_consistency_is_chosen_on_validation_data(tiny, tmp_path):
    """The final training is that of the choice alone, and the result says which it was."""
    rule = {"rank": 2, "consistency": "full", "consistency_noise": 1.5}

    def trained(name, **settings):
        config = tiny("fact_tt", fact_tt=ConfigDict({**rule, **settings}))
        return sweep(config, tmp_path / name)[0]

    grid = trained("grid", consistency_weights=(0.0, 30.0))
    labels = {f"consistency_weight={w:g}": w for w in (0.0, 30.0)}
    assert set(grid.selection) == set(labels)
    chosen = labels[max(grid.selection, key=grid.selection.__getitem__)]
    assert (grid.consistency_weight, grid.consistency_noise) == (chosen, 1.5)
    alone, other = (trained(f"{w:g}", consistency_weight=w) for w in (chosen, 30.0 - chosen))
    assert grid.losses == pytest.approx(alone.losses, rel=1e-4)
    assert grid.losses != pytest.approx(other.losses, rel=1e-2)
    plain = trained("plain", consistency="")
    assert (plain.consistency_weight, plain.consistency_noise) == (None, None)


def test_a_combination_from_the_plan_to_the_predictor(tiny, tmp_path):
    config = tiny(
        "fact_tt+vpt_deep",
        fact_tt=ConfigDict({"rank": 2, "scale": 3.0, "learning_rate": 9.0}),
        vpt_deep=ConfigDict({"num_tokens": 2}),
    )
    config["fact_tt+vpt_deep"] = ConfigDict({"learning_rate": 0.02, "scales": (0.5, 1.0)})
    cell = cell_of(config)
    parts = (("fact_tt", FacTTT(2, 3.0)), ("vpt_deep", VPTDeep(2)))
    assert cell.method == Combination(parts)
    # The run's numbers are the combination's own, and not those of a part.
    assert cell.candidates == (Candidate(0.5, 0.02, 1e-4), Candidate(1.0, 0.02, 1e-4))
    (result,) = sweep(config, tmp_path / "work")
    assert result["cell"] == "digits-fact_tt+vpt_deep-seed0"
    assert result["num_factors"] == 2 * 24 * 2 + 12 * 3 * 2**2 + 3 * 2 * 24
    accuracy, task = predicted_accuracy(config, tmp_path / "work", result)
    assert task.method == Combination(parts, scale=result["scale"])
    assert set(task.factors) == {"fact_tt/U", "fact_tt/S", "fact_tt/V", "vpt_deep/tokens"}
    assert accuracy == pytest.approx(result["accuracy"])
    assert np.abs(task.factors["fact_tt/V"]).max() > 1e-3  # both parts were trained
    fresh = Combination(parts).init(jax.random.split(jax.random.key(0))[0], VARIANTS["vit_tiny"])
    moved = np.abs(task.factors["vpt_deep/tokens"] - fresh["vpt_deep/tokens"])
    assert moved.max() > 1e-3


@pytest.mark.parametrize("name", ["fact_tt+lora", "vpt_deep+adapter+bitfit"])
def test_a_combination_is_built_again_from_its_description(name):
    built = build(name, {"scale": 2.0} | ({"lora": {"rank": 3}} if "lora" in name else {}))
    described, settings = describe(built)
    assert described == name
    assert build(described, json.loads(json.dumps(settings))) == built
    assert built.scale == 2.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build("lora+fact_tt", {"lora": {"scale": float("inf")}}), "scale is inf"),
        (lambda: build("lora+fact_tt", {"scale": "much"}), "scale is 'much'"),
        (lambda: build("noah_subnet", _subnet(prompts=[-3, 5])), "prompts is"),
        (lambda: build("noah_subnet", _subnet(lora=[True, 5])), "lora is"),
        (lambda: build("noah_subnet", {"lora": [1]}), "noah_subnet needs prompts, adapters"),
        (lambda: Combination((("noah", NOAH()), ("lora", LoRA()))), "noah cannot be combined"),
        (lambda: Combination((("a", LoRA()), ("a", LoRA()))), "Parts of one name"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
    assert build("noah_subnet", _subnet()) == NOAHSubnet((1, 5), (1, 5), (1, 5))


def _subnet(**changed):
    return {"prompts": [1, 5], "lora": [1, 5], "adapters": [1, 5], **changed}
