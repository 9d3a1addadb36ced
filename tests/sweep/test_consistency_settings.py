"""The setting `consistency` in a sweep: which methods it is refused for, and what is stored."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from configs import compare
from fact_jax.errors import UserError
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.stacks import RunStack


def plan_of(method, **changes):
    config = compare.get_config()
    config.methods = method
    config[method].update(changes)
    return make_plan(config)


@pytest.mark.parametrize("method", ["fact_tt", "fact_tk", "lora", "adapter", "convpass", "noah"])
@pytest.mark.parametrize("form", ["full", "fast", "lazy"])
def test_methods_with_increments_or_bottlenecks_train_with_it(method, form):
    cell = plan_of(method, consistency=form, consistency_noise=1.2)[0]
    assert cell.recipe.consistency == form
    assert cell.all_settings["consistency_noise"] == 1.2
    assert "consistency_weight" not in cell.all_settings


@pytest.mark.parametrize("method", ["linear", "full", "bitfit", "vpt_shallow", "vpt_deep", "ssf"])
def test_methods_with_neither_are_refused_before_anything_runs(method):
    expected = f"config.{method}: .* has neither low-rank increments nor"
    with pytest.raises(UserError, match=expected):
        plan_of(method, consistency="full")


def test_a_combination_is_judged_by_all_its_parts():
    config = compare.get_config()
    config.methods, config.consistency = "fact_tt+vpt_deep", "full"
    config["fact_tt+vpt_deep"] = ConfigDict({"scales": (1.0,)})
    assert make_plan(config)[0].recipe.consistency == "full"
    config.methods = "ssf+vpt_deep"
    config["ssf+vpt_deep"] = ConfigDict({"scales": (1.0,)})
    with pytest.raises(UserError, match="neither low-rank increments nor bottlenecks"):
        make_plan(config)


def test_what_a_form_cannot_do_is_refused():
    config = compare.get_config()
    config.methods, config.consistency, config.mixup = "fact_tt", "fast", 0.2
    with pytest.raises(UserError, match="fact_tt: consistency 'fast' .* mixup is 0.2"):
        make_plan(config)
    config.consistency = "full"
    make_plan(config)
    config.consistency, config.batch_size = "lazy", 1
    with pytest.raises(UserError, match="fact_tt: consistency 'lazy' .* batch size is 1"):
        make_plan(config)


def test_the_training_gets_noise_and_weight_each_in_its_place():
    cell = plan_of("fact_tt", consistency="full", consistency_noise=1.2, consistency_weight=0.3)[0]
    run = SimpleNamespace(
        cell=cell, peak_rate=0.1, epochs=4, choice=None, candidate=cell.candidates[0]
    )
    hyper = RunStack._hyper(None, run, 2)
    assert (hyper.consistency_noise, hyper.consistency_weight) == pytest.approx((1.2, 0.3))


GRID = {"consistency_weights": (0.1, 1.0), "consistency_noises": (0.3, 1.2)}


def test_weight_and_noise_may_have_candidates():
    cell = plan_of("lora", consistency="full", learning_rates=(0.01,), **GRID)[0]
    numbers = [(c.consistency_weight, c.consistency_noise) for c in cell.candidates]
    assert numbers == [(0.1, 0.3), (0.1, 1.2), (1.0, 0.3), (1.0, 1.2)]
    assert cell.label(cell.candidates[1]) == "consistency_weight=0.1, consistency_noise=1.2"
    assert {name: tuple(cell.as_stored[name]) for name in GRID} == GRID


def test_without_consistency_they_are_no_candidates():
    cell = plan_of("lora", learning_rates=(0.01,), consistency_noise=1.2, **GRID)[0]
    assert [c[3:] for c in cell.candidates] == [(None, None)]
    assert not {*GRID, "consistency_noise"} & cell.all_settings.keys()


def test_without_candidates_a_result_is_stored_as_before_there_could_be_any():
    cell = plan_of("lora", consistency="full", consistency_noise=1.2)[0]
    assert not GRID.keys() & cell.all_settings.keys()
    one = plan_of("lora", consistency="full", consistency_noises=(1.2,))[0]
    assert one.all_settings["consistency_noises"] == [1.2]
    assert [c.consistency_noise for c in (*cell.candidates, *one.candidates)] == [1.2] * 6
