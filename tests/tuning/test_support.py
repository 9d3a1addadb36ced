"""The table of methods and kinds of ViTs: the plan, the methods and the docs say the same."""

import jax
import pytest
from places import ROOT

from configs import compare
from fact_jax import VARIANTS, UserError
from fact_jax.sweep.plan import make_plan
from fact_jax.tuning import METHODS, Combination, FacTTT, Linear, LoRA
from fact_jax.tuning.method import factor_shapes
from fact_jax.tuning.support import COLUMNS, RULES, TRAITS, check_supported, rules_of, table

REFUSED = {
    (name, variant)
    for name in METHODS
    for variant in VARIANTS
    if any(not rule.works for rule in rules_of(name, VARIANTS[variant]))
}


def plan(variant: str, method: str):
    config = compare.get_config("vtab")
    size = VARIANTS[variant].image_size
    config.update({"variant": variant, "methods": method, "tasks": "dtd", "image_size": size})
    return make_plan(config)


def test_some_pairs_are_refused():
    square = {
        "fact_tt",
        "fact_tk",
        "fact_cp",
        "fact_shared",
        "metatt",
        "metatt_heads",
        "metatt_tasks",
        "cara",
    }
    assert {(name, "siglip2_so400m14") for name in square} == REFUSED


@pytest.mark.parametrize(("name", "variant"), sorted(REFUSED))
def test_a_refused_pair_is_refused_by_the_plan_and_by_the_method(name, variant):
    words = f"Method {name} does not work on a ViT with .*must be a multiple of width"
    with pytest.raises(UserError, match=f"config.variant is '{variant}'. {words}"):
        plan(variant, name)
    with pytest.raises(UserError, match="must be a multiple of width; this ViT has 4304 and 1152"):
        METHODS[name]().init(jax.random.key(0), VARIANTS[variant])


@pytest.mark.parametrize("variant", COLUMNS.values())
def test_every_other_pair_is_planned(variant):
    for name in METHODS:
        if (name, variant) not in REFUSED and name != "noah_subnet":
            assert plan(variant, name)


def test_the_parts_of_a_combination_are_checked():
    both = Combination((("linear", Linear()), ("fact_tt", FacTTT(2))))
    check_supported(both, VARIANTS["siglip2_b16"])
    with pytest.raises(UserError, match="Method fact_tt does not work"):
        check_supported(both, VARIANTS["siglip2_so400m14"])


def test_lora_takes_the_mlp_that_fact_cannot_cut():
    config = VARIANTS["siglip2_so400m14"].replace(depth=1)
    assert factor_shapes(LoRA(2, sites="fc1"), config)["B_fc1"] == (1, 2, 4304)


def test_the_rules_name_methods_and_traits_and_act_somewhere():
    for rule in RULES:
        assert METHODS.keys() >= set(rule.methods)
        assert any(TRAITS[rule.trait](config) for config in VARIANTS.values())
    shown = [VARIANTS[name] for name in COLUMNS.values()]
    for config in VARIANTS.values():  # every variant is like one of the columns
        traits = {name for name, has in TRAITS.items() if has(config)}
        assert traits in [{name for name, has in TRAITS.items() if has(c)} for c in shown]


def test_the_docs_have_the_table():
    assert table() in (ROOT / "docs" / "methods.md").read_text()
