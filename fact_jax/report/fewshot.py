"""Few-shot results: a table and the figure accuracy against shots, with the published points."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from rich.table import Table

from fact_jax.data import get_task
from fact_jax.report.figures import figure_text, legend, new_figure, save_figure, tidy
from fact_jax.report.palette import MARKERS, PAPER, SOFT, Style, styles
from fact_jax.report.published import published
from fact_jax.report.statistics import stat
from fact_jax.report.tables import costs, mean_text

# Our methods' rows in the published numbers, and data sets of another name there.
_ROWS = {method: method for method in ("lora", "adapter", "noah", "adaptformer")}
_ROWS |= {"fact_tt": "fact_tt_16", "vpt_deep": "vpt"}
# Published for all five sets; all tables and figures show them, even if their method was not run.
_BASELINES = {"noah": "NOAH", "lora": "LoRA", "adapter": "Adapter", "vpt": "VPT", "glora": "GLoRA"}
# NOAH's code, which made them, prints the largest of the test evaluations.
PUBLISHED = "published (best on test)"
_SETS = {"oxford_flowers": "oxford_flowers102"}

Seeds = dict[int | None, float]  # by seed; None for published values, which have no seed
Points = dict[str, dict[int, Seeds]]  # by method and shots
Curves = dict[str, Points]  # by data set


def few_shot_curves(results: list[dict[str, Any]]) -> Curves:
    """Accuracies by data set, method, shots and seed; other tasks are left out."""
    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for result in results:
        task = get_task(result["task"])
        if few := task.few_shot:
            curves[task.dataset][result["method"]][few.shots][result["seed"]] = result["accuracy"]
    return curves


def published_points(dataset: str, method: str) -> dict[int, float]:
    """Published accuracy by shots; empty if there is none. `method` may say more in brackets, as
    the labels of reports do: "lora (rank=4)"."""
    return _of_row(dataset, _row(method))


def _row(method: str) -> str:
    return _ROWS.get(method.partition(" ")[0], "")


def _of_row(dataset: str, row: str) -> dict[int, float]:
    shots = published()["fewshot_fgvc"].get(row, {}).get("shots", {})
    name = _SETS.get(dataset, dataset)
    return {int(k): values[name] for k, values in shots.items() if name in values}


def _published(dataset: str, methods: Iterable[str]) -> Points:
    """Published points of a data set, of these methods and of the other baselines."""
    points = {method: published_points(dataset, method) for method in methods}
    rows = {_row(method) for method in methods}
    points |= {n: _of_row(dataset, row) for row, n in _BASELINES.items() if row not in rows}
    return {m: {k: {None: v} for k, v in shots.items()} for m, shots in points.items() if shots}


def few_shot_table(results: list[dict[str, Any]]) -> Table:
    """Table with data sets and methods down, shots across: mean in % ± standard error over the
    seeds, and the methods' `costs`."""
    curves = few_shot_curves(results)
    tasks = [(get_task(r["task"]), r) for r in results]
    few = [(task.dataset, r) for task, r in tasks if task.few_shot]
    shots = sorted({k for rows in curves.values() for row in rows.values() for k in row})
    table = Table(title="Top-1 accuracy on test, %", title_justify="left")
    for name in ("data", "method"):
        table.add_column(name)
    for k in shots:
        table.add_column(f"{k} shot{'s' if k > 1 else ''}", justify="right")
    for name in ("numbers", "bytes", "grid"):
        table.add_column(name, justify="right")
    last, baselines = "", _BASELINES.values()
    for dataset, method, row, is_published in few_shot_rows(curves):
        if last and dataset != last:
            table.add_section()
        last = dataset
        if is_published:
            texts = (f"{row[k][None]:.1f}" if k in row else "-" for k in shots)
            name = f"published {method} (best on test)" if method in baselines else f"  {PUBLISHED}"
            table.add_row("", name, *texts, style="dim")
        else:
            runs = [r for d, r in few if r["method"] == method and dataset in ("mean", d)]
            texts = (mean_text(row.get(k, {}).values()) for k in shots)
            table.add_row(dataset, method, *texts, *costs(runs).values())
    table.caption = " ".join(remarks(results, curves)) or None
    return table


def few_shot_rows(curves: Curves) -> Iterator[tuple[str, str, dict[int, Seeds], bool]]:
    """Rows of the table: data set, method, accuracies by shots, whether they are published.

    A method's published row follows our row of it; other published rows come last. The mean of
    several data sets comes after them.
    """
    for dataset, ours, theirs in _groups(curves):
        for method, row in ours.items():
            yield dataset, method, row, False
            if method in theirs:
                yield dataset, method, theirs[method], True
        for method in (m for m in theirs if m not in ours):
            yield dataset, method, theirs[method], True


def remarks(results: list[dict[str, Any]], curves: Curves) -> list[str]:
    """Sentences on data from other lists than the published ones, or from several lists."""
    sources: dict[str, set[str]] = defaultdict(set)
    for result in results:
        task = get_task(result["task"])
        if task.few_shot and (data := result.get("data")):
            folder = data["builder"] == "folder"
            sources[task.dataset].add(f"{data['used_version']} lists" if folder else "TFDS")
    mixed = [f"{name} ({', '.join(sorted(s))})" for name, s in sources.items() if len(s) > 1]
    other = [
        name for name, rows in curves.items() if "TFDS" in sources[name] and _published(name, rows)
    ]
    remarks = []
    if mixed:
        remarks.append(f"Of several sources, and not comparable: {'; '.join(mixed)}.")
    if other:
        remarks.append(
            f"Read from TFDS: {', '.join(other)}; the published numbers are of CoOp's lists."
        )
    return remarks


def _mean(parts: list[Seeds]) -> Seeds:
    """Mean over data sets for each seed, or for all seeds at once if the sets have different ones;
    empty if a data set is missing."""
    if not all(parts):
        return {}
    if any(set(part) != set(parts[0]) for part in parts):
        return {None: statistics.fmean(statistics.fmean(part.values()) for part in parts)}
    return {seed: statistics.fmean(part[seed] for part in parts) for seed in parts[0]}


def _groups(curves: Curves) -> list[tuple[str, Points, Points]]:
    """Name, our accuracies and published ones of each data set, and then of their mean."""
    groups = [(name, dict(rows), _published(name, rows)) for name, rows in curves.items()]
    if len(groups) > 1:
        ours, theirs = (_over_sets([group[i] for group in groups]) for i in (1, 2))
        groups.append(("mean", ours, {m: row for m, row in theirs.items() if row}))
    return groups


def _over_sets(parts: list[Any]) -> Points:
    """Mean over data sets by method and shots; it is left out if a data set is missing."""
    methods = {m: None for rows in parts for m in rows}
    shots = sorted({k for rows in parts for row in rows.values() for k in row})
    means = {
        m: {k: _mean([rows.get(m, {}).get(k, {}) for rows in parts]) for k in shots}
        for m in methods
    }
    return {m: {k: v for k, v in row.items() if v} for m, row in means.items()}


def few_shot_figure(results: list[dict[str, Any]], styles: Mapping[str, Style]) -> Any:
    """Figure with a panel per data set and one of their mean, in the methods' `styles`. Published
    points are dashed and hollow, and grey if the method was not run. Needs matplotlib."""
    from matplotlib.lines import Line2D

    grey = {name: Style(SOFT, MARKERS[i], "--") for i, name in enumerate(_BASELINES.values())}
    looks = {**grey, **styles}
    hollow: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "markersize": 4}
    hollow["markerfacecolor"] = PAPER
    panels = _groups(few_shot_curves(results))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(3.4 * columns + 0.3, 2.8 * lines + 0.7)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (title, ours, theirs) in zip(axes, panels, strict=False):
        tidy(axis, "mean of the sets" if title == "mean" else title)
        for method, row in theirs.items():
            values = [v[None] for v in row.values()]
            axis.plot(list(row), values, **_plain(looks[method]), **hollow)
        for method, row in ours.items():
            points = [stat([*row[k].values()]) for k in sorted(row)]
            means, errors = [p.mean for p in points], [p.error or 0 for p in points]
            look = {**_plain(styles[method]), "markersize": 5, "linewidth": 1.5}
            axis.errorbar(sorted(row), means, errors, **look, capsize=2)
        axis.set_xscale("log", base=2)
        ticks = sorted(
            {k for row in ours.values() for k in row} | {k for r in theirs.values() for k in r}
        )
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.minorticks_off()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("training images a class", fontsize=9.5, color=SOFT)
    figure.supylabel("accuracy on test, %", fontsize=9.5, color=SOFT)
    methods = list({m: None for _, rows, _ in panels for m in rows})
    handles: list[Any] = [
        Line2D([], [], **_plain(styles[m]), markersize=5, label=figure_text(m)) for m in methods
    ]
    names = {m: None for _, _, theirs in panels for m in theirs}
    if any(m in methods for m in names):
        handles.append(Line2D([], [], color=SOFT, marker="o", **hollow, label=PUBLISHED))
    handles += [
        Line2D([], [], **_plain(looks[m]), **hollow, label=figure_text(f"published {m}"))
        for m in names
        if m not in methods
    ]
    legend(figure, handles, 2 * columns)
    return figure


def _plain(look: Style) -> dict[str, Any]:
    """Colour and marker of a style; its line is left out, because dashes mean published here."""
    return {"color": look.color, "marker": look.marker}


def draw_few_shot(results: list[dict[str, Any]], folder: epath.Path) -> list[epath.Path]:
    """Writes fewshot.png and fewshot.svg, see `few_shot_figure`."""
    methods = dict.fromkeys(r["method"] for r in results)
    figure = few_shot_figure(results, dict(zip(methods, styles(methods), strict=True)))
    paths = [folder / f"fewshot.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        save_figure(figure, path)
    return paths
