"""The few-shot table and figure, and the picture of an architecture."""

import io
import itertools
from dataclasses import replace

import matplotlib.figure
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from configs import quickstart
from fact_jax.cli import sweep
from fact_jax.report.architecture import architecture_text, draw_architecture
from fact_jax.report.fewshot import (
    draw_few_shot,
    few_shot_curves,
    terminal_few_shot_table,
)
from fact_jax.report.published import few_shot_points, few_shot_row
from fact_jax.report.study import sweep_systems
from fact_jax.sweep.result import Result

SETS = ("food101", "stanford_cars", "oxford_flowers", "fgvc_aircraft", "oxford_pets")
COSTS = ("7", "2,048", "3")


def results(sets=SETS, methods=("fact_tt", "lora"), shots=(1, 2, 16), seeds=3):
    """Accuracies 10, 11, 12 and so on: a mean of 3 seeds is the middle one."""
    cells = itertools.product(enumerate(sets), enumerate(methods), shots, range(seeds))
    costs = {"num_factors": 7, "factor_file_bytes": 2048, "grid_size": 3}
    made = []
    for (i, dataset), (j, method), k, seed in cells:
        task, accuracy = f"{dataset}_{k}shot", 10.0 * (i + 1) + 5 * j + k / 4 + seed
        made.append(Result(f"{task}-{method}-seed{seed}", method, task, seed, accuracy, **costs))
    return made


def rows_of(table):
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(table)
    lines = (line.split("│")[1:-1] for line in console.export_text().splitlines())
    return [[cell.strip() for cell in line] for line in lines if line]


def test_curves_are_by_set_method_and_shots_of_few_shot_tasks_only():
    whole = Result("digits-lora-seed0", "lora", "digits", 0, 99.0)
    curves = few_shot_curves(sweep_systems([*results(), whole], {}))
    assert list(dict.fromkeys(curve.dataset for curve in curves)) == [*SETS, "mean"]
    (cars,) = (c for c in curves if (c.dataset, c.name) == ("stanford_cars", "lora"))
    assert {k: value.mean for k, value in cars.points.items()} == {1: 26.25, 2: 26.5, 16: 30.0}


def published_points(dataset, method):
    return few_shot_points(dataset, few_shot_row(method))


def test_published_points_are_those_of_noahs_figure():
    assert published_points("food101", "lora") == {1: 31.8, 2: 48.7, 4: 59.0, 8: 66.4, 16: 72.5}
    # Its flowers are called oxford_flowers102 there; means of the facts, section 3.
    for method, means in {
        "noah": (41.0, 50.7, 59.1, 67.8, 76.5),
        "lora": (40.9, 49.6, 58.3, 66.7, 75.3),
        "adapter": (40.9, 49.7, 57.7, 65.2, 73.2),
        "vpt_deep": (30.2, 45.8, 56.7, 63.6, 72.0),
    }.items():
        points = [list(published_points(dataset, method).values()) for dataset in SETS]
        np.testing.assert_allclose(np.mean(points, axis=0), means, atol=0.06, err_msg=method)
    for dataset, method in (("food101", "fact_tt"), ("food101", "ssf"), ("digits", "lora")):
        assert published_points(dataset, method) == {}  # not obtained


def test_the_table_says_where_data_are_not_those_of_the_published_numbers():
    tfds, lists = (
        {"builder": builder, "used_version": version}
        for builder, version in (("food101", "2.0.0"), ("folder", "noah"))
    )

    def caption(*data, methods=("lora",)):
        own = results(("food101",), methods, (1,), seeds=len(data))
        return terminal_few_shot_table(
            [replace(r, data=d) for r, d in zip(own, data, strict=True)]
        ).caption

    assert caption(lists, lists) is None
    assert "TFDS: food101" in caption(tfds, tfds)
    own = replace(results(("digits",), seeds=1)[0], data=tfds)
    assert terminal_few_shot_table([own]).caption is None  # nothing published stands beside it
    assert "food101 (TFDS, noah lists)" in caption(tfds, lists)


def test_the_table_has_means_errors_and_published_rows():
    rows = rows_of(terminal_few_shot_table(results()))
    assert ["food101", "fact_tt", "11.2 ± 0.6", "11.5 ± 0.6", "15.0 ± 0.6", *COSTS] in rows
    at = rows.index(["food101", "lora", "16.2 ± 0.6", "16.5 ± 0.6", "20.0 ± 0.6", *COSTS])
    published = ["food101", "published lora (best on test)", "31.8", "48.7", "72.5"]
    assert rows[at + 1] == [*published, "-", "-", "-"]
    # What was not run stands below, once.
    names = [row[1] for row in rows[at + 2 : at + 6]]
    assert names == [f"published {m} (best on test)" for m in ("NOAH", "Adapter", "VPT", "GLoRA")]
    (mean,) = (row for row in rows if row[:2] == ["mean", names[0]])
    assert mean[2:5] == ["41.0", "50.7", "76.5"]  # means of the facts, section 3
    # The seeds' means over the sets are 30.25, 31.25, 32.25: an error of 1 / sqrt(3).
    assert ["mean", "fact_tt", "31.2 ± 0.6", "31.5 ± 0.6", "35.0 ± 0.6", *COSTS] in rows


def test_a_mean_needs_all_sets_and_one_seed_has_no_error():
    some = [r for r in results(seeds=1) if r.task != "oxford_pets_16shot"]
    rows = rows_of(terminal_few_shot_table(some))
    assert ["food101", "fact_tt", "10.2", "10.5", "14.0", *COSTS] in rows
    assert ["oxford_pets", "fact_tt", "50.2", "50.5", "-", *COSTS] in rows
    assert ["mean", "fact_tt", "30.2", "30.5", "-", *COSTS] in rows
    other = [r for r in results(seeds=2) if r.seed == 0 or r.task != "food101_1shot"]
    rows = rows_of(terminal_few_shot_table(other))  # of food101 one seed, of the others two
    assert ["mean", "fact_tt", "30.6", "31.0 ± 0.5", "34.5 ± 0.5", *COSTS] in rows
    alone = rows_of(terminal_few_shot_table(results(sets=("food101",))))
    assert not [row for row in alone if row[0] == "mean"]


@pytest.fixture
def figure(monkeypatch):
    """The figures that are saved."""
    saved = []
    savefig = matplotlib.figure.Figure.savefig

    def spy(self, *args, **kwargs):
        saved.append(self)
        return savefig(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved


def lines_of(axis):
    """Lines of points, without those of the error bars' ends."""
    return [line for line in axis.lines if line.get_linestyle() in ("-", "--")]


def test_the_figure_has_a_panel_a_set_and_the_mean_with_published_points(tmp_path, figure):
    png, svg = draw_few_shot(results(), tmp_path)
    assert (png, svg) == (tmp_path / "fewshot.png", tmp_path / "fewshot.svg")
    with Image.open(png) as image:
        image.load()
        assert image.size[0] > 1200
    assert "</svg>" in svg.read_text()
    axes = [axis for axis in figure[0].axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in axes] == [*SETS, "mean of the sets"]
    published, *grey, tt, lora = lines_of(axes[1])
    assert [line.get_linestyle() for line in (published, *grey)] == ["--"] * 5
    (color,) = {line.get_color() for line in grey}
    assert color not in (tt.get_color(), lora.get_color())
    assert published.get_color() == lora.get_color() != tt.get_color()
    points = published_points("stanford_cars", "lora")
    for line, expected in (
        (grey[0], published_points("stanford_cars", "noah")),
        (published, points),
        (lora, {1: 26.25, 2: 26.5, 16: 30.0}),
        (lines_of(axes[-1])[0], means_of_sets(points)),
    ):
        assert dict(zip(*line.get_data(), strict=True)) == pytest.approx(expected)
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["1", "2", "4", "8", "16"]


def means_of_sets(shots):
    return {k: np.mean([published_points(d, "lora")[k] for d in SETS]) for k in shots}


@pytest.mark.parametrize("count", [1, 4])
def test_no_panel_is_left_empty_and_nothing_overlaps(tmp_path, figure, count):
    """Also where the panels do not fill the last row."""
    names = ("digits", "fashion", "location", "food101")[:count]
    draw_few_shot(results(sets=names, methods=("fact_tt", "ssf")), tmp_path)
    axes = [axis for axis in figure[0].axes if axis.get_visible()]
    assert len(axes) == count + (count > 1)
    assert all(axis.lines for axis in axes)
    (legend,) = figure[0].legends
    others = [f"published {m}" for m in ("NOAH", "LoRA", "Adapter", "VPT", "GLoRA")]
    expected = ["fact_tt", "ssf", *(others if "food101" in names else [])]
    assert [t.get_text() for t in legend.get_texts()] == expected
    boxes = [item.get_tightbbox() for item in (*axes, legend, figure[0]._supxlabel)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


SEARCH = {
    "best": [[10] * 12, [5, 1, 10] * 2 + [0] * 6, [1] * 3 + [0] * 9],
    "fitness": 71.25,
    "parameters": 123_456,
    "history": [{"best": 60.0, "tried": 50}, {"best": 71.25, "tried": 100}],
}


def test_an_architecture_in_words():
    first, *lines = architecture_text(SEARCH).splitlines()
    assert "of 100 tried: 71.2 % on validation data" in first
    assert lines[0].split() == ["prompts", "█" * 12, *["10"] * 12]
    assert lines[1].split()[:2] == ["lora", "▄▁█▄▁█"]
    assert lines[2].split()[2:] == ["1"] * 3 + ["0"] * 9


def test_an_architecture_in_a_picture(tmp_path, figure):
    """Also of other families than NOAH's."""
    search = {**SEARCH, "families": ["experts", "gates"], "best": [[1, 2], [3, 4]]}
    _, *lines = architecture_text(search).splitlines()
    assert [line.split()[0] for line in lines] == ["experts", "gates"]
    draw_architecture(search, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
    axes = {axis.get_title(loc="left"): axis for axis in figure[0].axes}
    assert [bar.get_height() for bar in axes["gates"].patches] == [3, 4]
    labels = [axes[name].get_xlabel() for name in search["families"]]
    assert labels == ["", "block"]  # under the last
    (curve,) = axes["best so far on validation data, %"].lines
    assert curve.get_ydata().tolist() == [60.0, 71.25]


def test_the_commands_draw_what_they_found(tmp_path, monkeypatch):
    """Curves of the searches, for the cells that searched."""
    found = [Result(c, "noah", "dtd", 0, 1.0, search=s) for c, s in (("a", SEARCH), ("b", None))]
    monkeypatch.setattr(sweep, "run_sweep", lambda *args, **more: found)
    monkeypatch.setattr(sweep, "flags", fake_flags(tmp_path))
    monkeypatch.setattr(sweep.config_flags, "get_config_filename", lambda flag: "x.py")
    monkeypatch.setattr(sweep.config_flags, "get_override_values", lambda flag: {})
    sweep.command(lambda *args: None)
    assert [p.name for p in (tmp_path / "architectures").iterdir()] == ["a.png"]


def fake_flags(workdir):
    class Flags(dict):
        config, distributed = quickstart.get_config(), ""
        launcher, launch, dry_run, cells = "local", ConfigDict(), False, ""

    flags = Flags(config=None)
    flags.workdir = str(workdir)
    return type("flags", (), {"FLAGS": flags})
