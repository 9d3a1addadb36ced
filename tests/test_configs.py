"""Every config makes the plan that its text promises.

sweep/test_stored_plans.py holds all numbers of every plan.
"""

import dataclasses
import importlib
import re
import statistics
from dataclasses import replace

import jax
import pytest
from places import ROOT

from configs import compare
from fact_jax import get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.data import VTAB
from fact_jax.report.published import published, vtab_rows
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.settings import GRID, METHOD_SETTINGS
from fact_jax.tuning import METHODS, NOAH, NOAHSubnet, count_parameters

CONFIGS = ROOT / "configs"
VTAB_CONFIGS = {  # numbers on ViT-B/16 (a mean where they go by task)
    "full": 85_798_656,
    "linear": 0,
    "bitfit": 102_912,
    "vpt_shallow": 76_800,
    "vpt_deep": 678_104,
    "adapter": 156_768,
    "adapter_plus": 165_984,
    "adaptformer": 156_768,
    "adaptformer:petl": 147_456,
    "lora": 294_912,
    "lora:petl": 294_912,
    "dora": 313_344,
    "ssf": 205_824,
    "convpass": 327_552,
    "convpass:released": 327_552,
    "convpass:released_attention": 163_776,
    "repadapter": 239_808,
    "repadapter:released": 239_808,
    "repadapter:released_attention": 119_904,
    "noah": None,  # the search decides
    "noah:released": 360_134,
    "fact_cp": 53_760,
    "fact_shared": 76_032,
    "metatt": 30_720,
    "metatt_heads": 22_528,
    "metatt_tasks": 30_976,
    "lorta": 13_760,
    "cara": 45_024,
    "efft": 87_552,
    "uni_lora": 1_000,
    "tt_rank16": 61_440,
    "tt_tiny": 8_448,
    "tt_paper": 39_734,
    "tk_rank32": 86_528,
    "tk_paper": 68_985,
}
every_config = pytest.mark.parametrize("spec", VTAB_CONFIGS)


def load(spec):
    name, *arg = spec.split(":")
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(*arg), module.__doc__


@pytest.fixture(scope="module")
def count():
    """Numbers of a method's factors by variant, from the shapes alone."""
    bases = {}

    def count(method, variant="vit_b16"):
        config = get_variant(variant)
        if variant not in bases:
            bases[variant] = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
        init = lambda base: method.init(jax.random.key(0), config, base)  # noqa: E731
        return count_parameters(jax.eval_shape(init, bases[variant]))

    return count


def test_every_method_of_the_table_and_every_vtab_config_is_here():
    methods = {load(spec)[0].methods for spec in VTAB_CONFIGS}
    assert methods == METHODS.keys()
    files = {path.stem for path in CONFIGS.glob("*.py")}
    others = {
        "__init__",
        "base",
        "compare",
        "many_tasks",
        "pace",
        "quickstart",
        "rank_adaptive",
        "study",
    }
    here = {spec.split(":")[0] for spec in VTAB_CONFIGS}
    assert files - others - here == {name for name in files if name.startswith("fewshot")}


@every_config
def test_the_numbers_trained_are_the_published_ones(spec, count):
    config, _ = load(spec)
    cells = make_plan(config)
    assert [cell.task for cell in cells] == list(VTAB)
    if VTAB_CONFIGS[spec] is None:
        return
    mean = statistics.fmean(count(cell.method) for cell in cells)
    assert round(mean) == VTAB_CONFIGS[spec]
    row = published()["vtab1k"].get(config[config.methods].get("published", ""), {})
    # Printed for other sizes than ours: tuned prompt lengths, no biases, an error (fact_tt).
    others = {"vpt_shallow", "vpt_deep", "repadapter", "tt_rank16", "tk_rank32", "tt_paper"}
    others |= {"repadapter:released", "noah:released"}
    if row.get("params_m") is not None and spec not in others:
        assert mean / 1e6 == pytest.approx(row["params_m"], abs=0.0006 if mean < 1e6 else 0.05)


@every_config
def test_the_published_row_exists_and_is_quoted_rightly(spec):
    config, text = load(spec)
    row = config[config.methods].get("published", "")
    if not row:
        assert "No published numbers" in text
        return
    mean = published()["vtab1k"][row]["mean"]["group_mean"]
    assert vtab_rows(config.methods, row)
    quoted = [float(number) for number in re.findall(r"(\d\d\.\d+)\s%", text)]
    assert any(abs(number - mean) <= 0.051 for number in quoted), (mean, quoted)


def test_noah_s_released_subnets_are_retrained(count):
    cells = make_plan(load("noah:released")[0])
    vit = get_variant("vit_b16")
    (noah,) = {cell.method for cell in make_plan(load("noah")[0])}
    choices = {cell.task: cell.method.choice for cell in cells}
    # The facts: of the blocks alone, and with the input's prompts and 100 positions.
    assert round(statistics.fmean(NOAHSubnet.of(c).count(vit) for c in choices.values())) == 360_134
    assert round(statistics.fmean(noah.count(c, vit) for c in choices.values())) == 442_512
    assert all(set(c.ravel()) <= {1, 5, 10} for c in choices.values())
    assert NOAH().count(choices["dtd"], vit) == noah.count(choices["dtd"], vit) - 90 * vit.width
    (kitti,) = (cell for cell in cells if cell.task == "kitti")
    shapes = jax.eval_shape(lambda: kitti.method.init(jax.random.key(0), vit))
    assert (shapes["prompts"].shape, shapes["lora_A"].shape) == ((50, 768), (82, 768))
    assert shapes["down_bias"].shape == (64,)


@pytest.mark.parametrize(
    ("spec", "variant", "cells"),
    [("compare", "vit_mini", 144), ("compare:dinov2", "dinov2_s14", 48)],
)
def test_small_comparisons_give_every_method_as_many_rates(spec, variant, cells, count):
    config, _ = load(spec)
    plan = make_plan(config)
    assert len(plan) == cells
    assert {cell.method_name for cell in plan} == METHODS.keys() - {"noah_subnet", *compare.FAMILY}
    for cell in plan:
        assert len({c.learning_rate for c in cell.candidates}) == len(cell.candidates) == 3
        assert len({c._replace(learning_rate=0) for c in cell.candidates}) == 1
        assert cell.settings.optimizer == "adamw"
    sizes = {cell.method_name: count(cell.method, variant) for cell in plan}
    everything = sizes.pop("full")
    assert all(size < 0.05 * everything for size in sizes.values()), sizes


def test_many_tasks_are_a_hundred_pairs_with_the_quickstart_s_rates():
    cells, quickstart = (make_plan(load(spec)[0]) for spec in ("many_tasks", "quickstart"))
    rates = {(c.method_name, c.task): c.candidates[0].learning_rate for c in quickstart}
    assert len(cells) == 100 * 2 * 2
    assert len({cell.task for cell in cells}) == 100
    for cell in cells:
        _, data, first, second = cell.task.split("_")
        assert int(first) < int(second)
        (candidate,) = cell.candidates
        assert candidate.learning_rate == rates[cell.method_name, data]
    with pytest.raises(ValueError, match="from 1 to 100"):
        load("many_tasks:101")


@pytest.mark.parametrize("spec", ["compare", "compare:dinov2"])
def test_the_limit_of_noah_s_search_allows_some_and_not_all(spec):
    config, _ = load(spec)
    vit = get_variant(config.variant)
    (noah,) = {cell.method for cell in make_plan(config) if cell.method_name == "noah"}
    largest = [[max(noah.widths)] * vit.depth] * 3
    smallest = [[min(noah.widths)] * vit.depth] * 3
    assert noah.count(smallest, vit) < noah.limit < noah.count(largest, vit)


def test_the_vtab_comparison_takes_each_method_s_own_settings():
    cells = make_plan(load("compare:vtab")[0])
    assert len(cells) == 16 * 19
    for name in compare.SMALL:
        alone = make_plan(load(compare.CONFIGS.get(name, name))[0])
        together = [cell for cell in cells if cell.method_name == name]
        for a, b in zip(alone, together, strict=True):  # normalisation is the whole sweep's
            assert (a.task, a.method, a.candidates) == (b.task, b.method, b.candidates)
            assert replace(a.settings, normalisation=b.settings.normalisation) == b.settings
            assert a.method_settings == b.method_settings


def test_the_table_of_docs_methods_has_every_method_and_its_published_mean():
    page, _, _ = (ROOT / "docs" / "methods.md").read_text().partition("## Which methods work")
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", page, re.MULTILINE))
    assert METHODS.keys() - {"noah_subnet"} <= rows.keys()
    elsewhere = {"tt_tiny", "tt_paper", "tk_paper", "repadapter:released_attention"}
    for spec, numbers in VTAB_CONFIGS.items():
        config, _ = load(spec)
        cells = rows[{"noah_subnet": "noah"}.get(config.methods, config.methods)].split(" | ")
        assert spec.split(":")[0] in cells[-1]
        if ":" in spec:
            assert spec.replace(":", ".py:") in cells[-1]
        if spec not in elsewhere and numbers is not None:
            assert f"{numbers:,}" in cells[1], spec
        if row := config[config.methods].get("published"):
            results = published()["vtab1k"][row]
            if results["tasks"]:
                assert f"{results['mean']['group_mean']:.2f}" in cells[-2]
        else:
            assert "not published" in cells[-2] or spec in elsewhere


@pytest.mark.parametrize(
    "spec",
    [
        *VTAB_CONFIGS,
        *("quickstart", "compare", "compare:vtab", "many_tasks:2,finish"),
        *("study", "study:smallest", "study:bits4", "study:dinov2"),
        *("fewshot:all", "fewshot:quickstart"),
    ],
)
def test_the_command_line_knows_every_setting_of_a_method(spec):
    """But those by task, and those with a list of candidates: they would say nothing."""
    config, _ = load(spec)
    for method in config.methods.split(","):
        fields = {f.name for f in dataclasses.fields(METHODS[method])}
        settings = config[method].to_dict()
        said = {k: v for k, v in settings.items() if v is not None}
        by_task = {name for task in said.get("per_task", {}).values() for name in task}
        decided = {GRID[several] for several in GRID if several in said} - said.keys()
        hidden = {*fields, *METHOD_SETTINGS, *GRID} - settings.keys()
        assert hidden == (by_task - said.keys()) | decided
