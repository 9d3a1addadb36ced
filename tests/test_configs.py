"""Every config makes the plan that its text promises."""

import dataclasses
import importlib
import re
import statistics
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from places import ROOT

from configs import compare
from fact_jax import UserError, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.data import VTAB
from fact_jax.report.published import published
from fact_jax.report.tables import published_columns
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.settings import GRID, METHOD_SETTINGS
from fact_jax.tuning import METHODS, NOAH, Adapter, NOAHSubnet, count_parameters

CONFIGS = ROOT / "configs"
VTAB_CONFIGS = {  # candidates a cell, and numbers on ViT-B/16 (a mean where they go by task)
    "full": (4, 85_798_656),
    "linear": (40, 0),
    "bitfit": (4, 102_912),
    "vpt_shallow": (40, 76_800),
    "vpt_deep": (40, 678_104),
    "adapter": (1, 156_768),
    "adaptformer": (1, 156_768),
    "adaptformer:petl": (5, 147_456),
    "lora": (1, 294_912),
    "lora:petl": (5, 294_912),
    "ssf": (1, 205_824),
    "convpass": (5, 327_552),
    "convpass:released": (1, 327_552),
    "convpass:released_attention": (1, 163_776),
    "repadapter": (5, 239_808),
    "repadapter:released": (1, 239_808),
    "repadapter:released_attention": (1, 119_904),
    "noah": (1, None),  # the search decides
    "noah:released": (1, 360_134),
    "fact_cp": (5, 53_760),
    "fact_shared": (5, 76_032),
    "tt_rank16": (5, 61_440),
    "tt_tiny": (5, 8_448),
    "tt_paper": (1, 39_734),
    "tk_rank32": (5, 86_528),
    "tk_paper": (1, 68_985),
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
    others = {"__init__", "base", "compare", "quickstart"}
    here = {spec.split(":")[0] for spec in VTAB_CONFIGS}
    assert files - others - here == {name for name in files if name.startswith("fewshot")}


@every_config
def test_the_plan_has_19_cells_of_so_many_candidates(spec):
    config, _ = load(spec)
    cells = make_plan(config)
    candidates, _ = VTAB_CONFIGS[spec]
    assert [cell.task for cell in cells] == list(VTAB)
    for cell in cells:
        assert len(cell.candidates) == candidates, cell.task
    assert {cell.method_name for cell in cells} == {config.methods}


@every_config
def test_the_numbers_trained_are_the_published_ones(spec, count):
    config, _ = load(spec)
    _, expected = VTAB_CONFIGS[spec]
    if expected is None:
        return
    mean = statistics.fmean(count(cell.method) for cell in make_plan(config))
    assert round(mean) == expected
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
    assert published_columns(config.methods, row)
    quoted = [float(number) for number in re.findall(r"(\d\d\.\d+)\s%", text)]
    assert any(abs(number - mean) <= 0.051 for number in quoted), (mean, quoted)


@every_config
def test_a_table_by_task_names_the_19_and_no_other(spec):
    config, _ = load(spec)
    per_task = config[config.methods].get("per_task")
    assert per_task is None or set(per_task) == set(VTAB)


@every_config
def test_protocol_paper_takes_what_leaves_nothing_to_choose(spec):
    config, _ = load(spec)
    config.protocol = "paper"
    if VTAB_CONFIGS[spec][0] == 1:
        assert len(make_plan(config)) == 19
    else:
        with pytest.raises(UserError, match="chooses nothing on validation data"):
            make_plan(config)


def test_published_settings_reach_the_cells():
    def cell(spec, task):
        (planned,) = [c for c in make_plan(load(spec)[0]) if c.task == task]
        return planned

    ssf = cell("ssf", "clevr_dist")
    assert ssf.candidates == ((1.0, 5e-2, 5e-2),)
    assert (ssf.settings.drop_path_rate, ssf.settings.decay_vectors) == (0.1, False)
    vpt = cell("vpt_deep", "smallnorb_azi")
    assert vpt.method.num_tokens == 200
    assert (vpt.recipe.optimizer, vpt.settings.dropout_rate) == ("sgd", 0.1)
    assert list(dict.fromkeys(c.learning_rate for c in vpt.candidates)) == [  # smallest first
        0.0125,
        0.025,
        0.0625,
        0.125,
        0.25,
        0.625,
        1.25,
        2.5,
        6.25,
        12.5,
    ]
    assert {c.weight_decay for c in vpt.candidates} == {0.01, 1e-3, 1e-4, 0.0}
    full = cell("full", "dtd")
    assert [c.learning_rate for c in full.candidates] == [2.5e-5, 1.25e-4, 2.5e-4, 1.25e-3]
    assert {c.weight_decay for c in full.candidates} == {0.01}
    for spec in ("adapter", "lora", "noah"):
        dtd = cell(spec, "dtd")
        assert dtd.candidates == ((1.0, 1e-3, 1e-4),)
        assert (dtd.settings.drop_path_rate, dtd.settings.decay_vectors) == (0.1, False)
    assert cell("lora", "dtd").method.shared_input
    assert not cell("lora:petl", "dtd").method.shared_input
    assert cell("lora:petl", "dtd").settings.normalisation == "none"
    assert cell("adaptformer:petl", "dtd").method.form == "petl"
    for spec in ("lora", "adaptformer", "compare", "noah", "convpass", "repadapter"):
        with pytest.raises(ValueError, match=f"{spec}.py:x: expected"):
            load(f"{spec}:x")


def test_tables_by_task_are_those_of_the_sources():
    """VPT's lengths as in the facts; of the others so much that no change goes unseen."""
    released = [spec for spec in VTAB_CONFIGS if ":released" in spec and spec != "noah:released"]
    plans = {spec: make_plan(load(spec)[0]) for spec in ("vpt_deep", "ssf", *released)}
    lengths = [cell.method.num_tokens for cell in plans["vpt_deep"]]
    assert lengths == [
        10,
        10,
        10,
        1,
        1,
        50,
        5,
        100,
        100,
        10,
        1,
        100,
        200,
        100,
        100,
        100,
        100,
        200,
        200,
    ]
    assert statistics.fmean(lengths) == pytest.approx(73.6, abs=0.05)
    rates = [cell.candidates[0].learning_rate for cell in plans["ssf"]]
    assert [round(1e3 * rate) for rate in rates] == [
        5,
        1,
        5,
        5,
        5,
        10,
        5,
        5,
        3,
        2,
        5,
        2,
        50,
        5,
        10,
        10,
        5,
        20,
        5,
    ]
    decays = {cell.task for cell in plans["ssf"] if cell.candidates[0].weight_decay == 5e-2}
    assert decays == {"caltech101", "eurosat", "clevr_count", "clevr_dist", "smallnorb_ele"}
    assert {cell.candidates[0].weight_decay for cell in plans["ssf"]} == {5e-2, 5e-5}
    drops = "".join(str(round(10 * cell.settings.drop_path_rate)) for cell in plans["ssf"])
    assert drops == "0100000" + "0212" + "11100212"

    def scales(spec):
        return [cell.candidates[0].scale for cell in plans[spec]]

    # In VTAB's order: seven natural tasks, four specialised, eight structured.
    assert scales("repadapter:released") == [
        *(0.1, 5, 1, 0.5, 0.1, 10, 0.1),
        *(1, 1, 5, 0.1),
        *(0.5, 0.1, 5, 5, 5, 0.1, 10, 1),
    ]
    assert scales("repadapter:released_attention") == [
        *(0.1, 10, 0.1, 0.5, 0.5, 10, 0.1),
        *(0.5, 5, 0.1, 0.5),
        *(1, 0.1, 5, 1, 10, 5, 10, 1),
    ]
    assert scales("convpass:released") == [
        *(0.1, 1, 0.01, 0.1, 1, 100, 0.1),
        *(10, 10, 10, 1),
        *(1, 0.1, 10, 10, 100, 0.1, 100, 1),
    ]
    assert scales("convpass:released_attention") == [
        *(0.1, 100, 0.1, 1, 1, 100, 0.1),
        *(10, 10, 100, 0.1),
        *(10, 1, 10, 10, 10, 1, 100, 1),
    ]
    xavier = "".join(str(int(cell.method.xavier)) for cell in plans["convpass:released"])
    assert xavier == "0011110" + "0000" + "01011111"
    assert all(cell.method.xavier for cell in plans["convpass:released_attention"])
    for spec in ("convpass", "repadapter"):
        for name in (spec, f"{spec}:released", f"{spec}:released_attention"):
            only = {cell.method.attention_only for cell in make_plan(load(name)[0])}
            assert only == {name.endswith("attention")}


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
    # Whichever width of whichever row moves.
    places = sum(np.arange(1, 13) * (k + 1) * c for k, c in enumerate(choices.values()))
    assert places.sum(1).tolist() == [85_710, 78_981, 82_564]
    (kitti,) = (cell for cell in cells if cell.task == "kitti")
    assert kitti.method == NOAHSubnet(
        (1, 5, 10, 1, 10, 5, 1, 1, 1, 5, 5, 5),
        (5, 10, 10, 10, 1, 10, 5, 5, 10, 5, 10, 1),
        (5, 1, 10, 10, 1, 10, 1, 1, 5, 10, 5, 5),
    )
    assert kitti.candidates == ((1.0, 1e-3, 1e-4),)
    assert (kitti.settings.epochs, kitti.settings.decay_vectors) == (100, False)
    shapes = jax.eval_shape(lambda: kitti.method.init(jax.random.key(0), vit))
    assert (shapes["prompts"].shape, shapes["lora_A"].shape) == ((50, 768), (82, 768))
    assert shapes["down_bias"].shape == (64,)
    # Which are equal where nothing says why.
    equal = Counter(tuple(c[2]) for c in choices.values())
    assert sorted(equal.values()) == [1] * 14 + [2, 3]
    same = {task for task, c in choices.items() if (c[0] == c[1]).all()}
    assert same == {"dtd", "oxford_flowers102"}


@pytest.mark.parametrize(
    ("spec", "variant", "cells"),
    [("compare", "vit_mini", 144), ("compare:dinov2", "dinov2_s14", 48)],
)
def test_small_comparisons_give_every_method_as_many_rates(spec, variant, cells, count):
    config, _ = load(spec)
    plan = make_plan(config)
    assert len(plan) == cells
    assert {cell.method_name for cell in plan} == METHODS.keys() - {"noah_subnet"}
    for cell in plan:
        assert len({c.learning_rate for c in cell.candidates}) == len(cell.candidates) == 3
        assert len({c._replace(learning_rate=0) for c in cell.candidates}) == 1
        assert cell.settings.optimizer == "adamw"
    sizes = {cell.method_name: count(cell.method, variant) for cell in plan}
    everything = sizes.pop("full")
    assert all(size < 0.05 * everything for size in sizes.values()), sizes


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


def test_methods_of_the_comparison_can_be_combined():
    config, _ = load("compare")
    config.methods = "fact_tt+vpt_deep"
    config["fact_tt+vpt_deep"] = ConfigDict({"learning_rates": (3e-3, 1e-2)})
    cells = make_plan(config)
    assert len(cells) == 9
    assert [c.learning_rate for c in cells[0].candidates] == [3e-3, 1e-2]
    assert all(GRID.keys() <= cell.as_stored.keys() for cell in cells)


def test_the_table_of_docs_methods_has_every_method_and_its_published_mean():
    page, _, _ = (ROOT / "docs" / "methods.md").read_text().partition("## Traps")
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", page, re.MULTILINE))
    assert METHODS.keys() - {"noah_subnet"} <= rows.keys()
    elsewhere = {"tt_tiny", "tt_paper", "tk_paper", "repadapter:released_attention"}
    for spec, (_, numbers) in VTAB_CONFIGS.items():
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
    [*VTAB_CONFIGS, "quickstart", "compare", "compare:vtab", "fewshot:all", "fewshot:quickstart"],
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


def test_a_method_s_settings_from_the_command_line_are_those_of_its_cells():
    config, _ = load("adapter")
    config.adapter.update({"placement": "houlsby", "learning_rates": (1e-3, 5e-3), "epochs": 7})
    cell = make_plan(config)[0]
    assert cell.method == Adapter(8, "houlsby")
    assert [c.learning_rate for c in cell.candidates] == [1e-3, 5e-3]
    assert cell.settings.epochs == 7
    with pytest.raises(KeyError, match="scale"):  # five are given
        load("tt_rank16")[0].fact_tt["scale"]
    with pytest.raises(TypeError):
        config.adapter.placement = 3


def test_settings_that_nobody_sets_change_no_cell():
    """A sweep that was begun before the command line knew them goes on."""
    config = compare.get_config()
    for name, settings in compare.SMALL.items():
        said = {k: v for k, v in config[name].to_dict().items() if v is not None}
        expected = {**settings, "learning_rates": said["learning_rates"]}
        if name == "noah":
            expected["limit"] = said["limit"]
        assert said == expected


def test_a_combination_takes_one_scale_of_its_parts():
    config = compare.get_config()
    config.methods, config.tasks = "fact_tt+vpt_deep", "digits"
    config.fact_tt.scales = (0.1, 1.0)
    with pytest.raises(UserError, match="config.fact_tt has several scales"):
        make_plan(config)
    config.fact_tt.scales = (0.1,)
    assert make_plan(config)[0].method_settings["fact_tt"] == {"rank": 16, "scale": 0.1}
