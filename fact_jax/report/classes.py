"""A look inside a task: confusions, the worst classes, pictures right and wrong."""

import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from fact_jax.files.guards import is_regular
from fact_jax.images import decoder
from fact_jax.report.blocks import Block, Cell, Column, Details, Figure, Row, Table, Text, Tiles
from fact_jax.report.figures import figure_text, new_figure, tidy
from fact_jax.report.palette import INK, SOFT
from fact_jax.report.records import Result
from fact_jax.report.study import Study, System
from fact_jax.sweep.store import absolute

_HEAT_MAP = 20  # most classes of a heat map; with more, the pairs are listed
_PAIRS, _WORST = 12, 8
_MOST_BYTES = 4 << 20  # of a row of pictures
_RIGHT, _WRONG = (0.0, 0.447, 0.698), (0.84, 0.15, 0.16)  # blue and red


def task_details(study: Study, task: str) -> Details | None:
    """Confusions of one method, worst classes of all, pictures of one cell; None if the results
    hold none of these (older versions did not store them)."""
    runs = {s: [r for r in s.results if r["task"] == task] for s in study.systems}
    runs = {s: results for s, results in runs.items() if results}
    with_counts = {s: c for s, rs in runs.items() if (c := [r for r in rs if r.get("confusion")])}
    blocks: list[Block] = []
    if with_counts:
        shown, why = _shown(with_counts)
        results = with_counts[shown]
        names = _names(results)
        seeds = f"{len(results)} seed{'s' if len(results) > 1 else ''}"
        blocks.append(
            Text(f"Shown is **{shown.label}** ({why}), test split, last epoch, {seeds} added up.")
        )
        blocks += _confusion(task, results, names)
    blocks += _worst(runs)
    if with_counts:
        blocks += _pictures(task, with_counts[shown], study)
    count = len(next(iter(runs.values()))[0].get("class_names") or ()) if runs else 0
    classes = f", {count} classes" if count else ""
    return Details(f"{task}{classes}", blocks) if blocks else None


def _shown(systems: dict[System, list[Result]]) -> tuple[System, str]:
    """The method whose confusions are shown; test accuracy does not choose it."""
    validation = {
        system: [
            max(accuracies)
            for r in results
            if (accuracies := [v for v in (r.get("selection") or {}).values() if v is not None])
        ]
        for system, results in systems.items()
    }
    if len(systems) > 1 and all(validation.values()):
        best = max(systems, key=lambda s: statistics.fmean(validation[s]))
        return best, "the best on validation data"
    return next(iter(systems)), "the first method of the table"


def _names(results: Sequence[Result]) -> list[str]:
    """Class names; numbers where none are stored."""
    if names := results[0].get("class_names"):
        return [str(n) for n in names]
    largest = max((max(t, p) for r in results for t, p, _ in r["confusion"]), default=0)
    size = max([largest + 1, *(len(r.get("per_class_accuracy") or ()) for r in results)])
    return [str(i) for i in range(size)]


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _name_cell(names: Sequence[str], index: int) -> Cell:
    return Cell(_name(names, index), _name(names, index))


def _confusion(task: str, results: Sequence[Result], names: list[str]) -> list[Block]:
    counts: Counter[tuple[int, int]] = Counter()
    for result in results:
        for true, predicted, count in result["confusion"]:
            counts[true, predicted] += count
    if len(names) <= _HEAT_MAP and all(max(pair) < len(names) for pair in counts):
        return [_heat_map(task, counts, names)]
    totals: Counter[int] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    wrong = sorted(
        ((n, t, p) for (t, p), n in counts.items() if t != p), key=lambda x: (-x[0], x[1:])
    )
    rows = []
    for n, t, p in wrong[:_PAIRS]:
        numbers = [Cell(f"{n:,}", n), Cell(f"{100 * n / totals[t]:.1f}", 100 * n / totals[t])]
        rows.append(Row([_name_cell(names, t), _name_cell(names, p), *numbers]))
    columns = [Column("true class", numeric=False), Column("taken for", numeric=False)]
    columns += [Column("images"), Column("% of the class")]
    if not rows:
        return [Text("No image was taken for another class.")]
    more = f" of {len(wrong):,}" if len(wrong) > _PAIRS else ""
    return [Table(f"The {len(rows)} most frequent confusions{more}.", columns, rows)]


def _heat_map(task: str, counts: Counter[tuple[int, int]], names: list[str]) -> Figure:
    """Figure of the confusions: rows are true classes, the colour is the share of the row."""
    import numpy as np

    size = len(names)
    share = np.zeros((size, size))
    for (true, predicted), count in counts.items():
        share[true, predicted] = count
    share /= np.maximum(share.sum(1, keepdims=True), 1)
    side = max(2.2, min(5.4, 0.36 * size))
    short = [figure_text(name, 18) for name in names]
    figure = new_figure(side + 0.085 * max(map(len, short)) + 0.7, side + 0.9)
    axis = figure.subplots()
    tidy(axis, grid="")
    centred = {"ha": "center", "va": "center", "fontsize": 8}
    for true, predicted in counts:
        part = float(share[true, predicted])
        if part < 0.002:
            continue
        colour = _RIGHT if true == predicted else _WRONG
        axis.add_patch(_square(predicted, true, (*colour, 0.25 + 0.75 * part)))
        if size <= 12:
            ink = "white" if part > 0.55 else INK
            axis.text(predicted, true, f"{100 * part:.0f}", color=ink, **centred)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    axis.set_aspect("equal")
    long = max(map(len, short)) > 2
    axis.set_xticks(range(size), short, rotation=90 if long else 0)
    axis.set_yticks(range(size), short)
    axis.tick_params(length=0, labelcolor=INK, labelsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(SOFT)
    axis.spines[:].set_linewidth(0.6)
    wrong = [(share[t, p], _name(names, t), _name(names, p)) for t, p in counts if t != p]
    top = "; ".join(f"{t} taken for {p} {100 * s:.0f} %" for s, t, p in sorted(wrong)[::-1][:3])
    alt = f"Confusion matrix of {task}. Most: {top or 'none'}."
    caption = "Confusion matrix, % of the true class (row): blue where right, red where wrong."
    return Figure(f"confusion-{task}", figure, alt, caption)


def _square(x: int, y: int, colour: tuple[float, ...]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="none", linewidth=0)


def _worst(runs: dict[System, list[Result]]) -> list[Block]:
    """Table of the classes with the lowest mean over methods, with each method's mean over its
    seeds."""
    names: list[str] = []
    by_class: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for system, results in runs.items():
        for result in results:
            names = names or [str(n) for n in result.get("class_names") or ()]
            for i, accuracy in enumerate(result.get("per_class_accuracy") or ()):
                if accuracy is not None:
                    by_class[i][system.label].append(accuracy)
    if not by_class:
        return []
    means = {
        i: {label: statistics.fmean(v) for label, v in values.items()}
        for i, values in by_class.items()
    }
    order = sorted(means, key=lambda i: (statistics.fmean(means[i].values()), i))[:_WORST]
    labels = [s.label for s in runs if any(s.label in row for row in means.values())]
    rows = []
    for i in order:
        best = max(means[i].values())
        mean = statistics.fmean(means[i].values())
        cells = [
            Cell("–") if (v := means[i].get(k)) is None else Cell(f"{v:.1f}", v, bold=v == best)
            for k in labels
        ]
        rows.append(Row([_name_cell(names, i), Cell(f"{mean:.1f}", mean), *cells]))
    columns = [Column("class", numeric=False), Column("mean", strong=True), *map(Column, labels)]
    of = f" of {len(means)}" if len(means) > len(rows) else ""
    caption = f"The {len(rows)} worst classes{of}: accuracy on test, %, mean over the seeds."
    return [Table(caption, columns, rows)]


def _pictures(task: str, results: Sequence[Result], study: Study) -> list[Block]:
    """Pictures of the first seed that has any."""
    for result in results:
        examples = result.get("examples")
        if not examples:
            continue
        names, jpeg = _names(results), _strip(result["workdir"], examples)
        if jpeg is None:
            return [Text(f"The pictures of `{result['cell']}` are missing or broken.")]
        entries = [
            (_name(names, t), _name(names, p), t == p)
            for t, p in zip(examples["true"], examples["predicted"], strict=True)
        ]
        if not entries:
            continue
        text = (
            f"Drawn at random from the test split, cell `{result['cell']}`: those it got wrong "
            "(true → predicted), then those it got right."
        )
        return [Text(text), Tiles(f"examples-{task}", jpeg, entries)]
    return []


def _strip(workdir: str, examples: dict[str, Any]) -> bytes | None:
    """The work directory's JPEG; None unless it is sound and has a square for each example."""
    folder = absolute(workdir) / "examples"
    path = folder / PurePosixPath(str(examples["file"])).name
    try:
        if not is_regular(path) or path.stat().length > _MOST_BYTES:
            return None
        content = path.read_bytes()
        with decoder.reasons(), Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            whole = image.size == (examples["size"] * len(examples["true"]), examples["size"])
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return content if whole else None
