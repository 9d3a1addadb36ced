"""A look inside a task: confusions, the worst classes, pictures right and wrong."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from PIL import Image

from fact_jax.files.guards import is_regular
from fact_jax.images import decoder
from fact_jax.report.averages import stat
from fact_jax.report.blocks import Block, Choice, Details, Heat, Text, Tiles
from fact_jax.report.measures import labels_table, measures_table
from fact_jax.report.study import Study, System
from fact_jax.report.table import Cell, Column, Row, Table, name_cell, number_cell
from fact_jax.sweep.result import Examples, Result
from fact_jax.sweep.store import absolute

_HEAT_MAP = 20  # most classes of a matrix; with more, the pairs are listed
_PAIRS, _WORST = 12, 8
_MOST_BYTES = 4 << 20  # of a row of pictures
_ALL_PICTURES = 2 << 20  # bytes of all rows but those of the best methods

Runs = Mapping[System, list[Result]]  # of one task
Counts = Counter[tuple[int, int]]  # by true and predicted class


def details(study: Study) -> list[Details]:
    """Confusions and pictures of each method, and the worst classes of all, for each task whose
    results hold some of them (older versions stored none)."""
    runs: dict[str, dict[System, list[Result]]] = {task.name: {} for task in study.tasks}
    for system in study.systems:
        for result in system.results:
            runs[result.task].setdefault(system, []).append(result)
    share = _ALL_PICTURES // max(1, sum(map(len, runs.values())))
    found = (_task_details(task, of_task, share) for task, of_task in runs.items())
    return [details for details in found if details is not None]


def _task_details(task: str, runs: Runs, share: int) -> Details | None:
    """One task's; `share` is the most bytes of a row of pictures, but for the best method."""
    with_counts = {s: c for s, rs in runs.items() if (c := [r for r in rs if r.confusion])}
    blocks: list[Block] = []
    if with_counts:
        order, why = _best_first(with_counts)
        blocks.append(Text(f"Test split, last epoch; {why}."))
        options = [
            (
                f"{system.label} ({stat([r.accuracy for r in results]).mean:.1f} %)",
                [
                    _confusion(results, _names(results)),
                    *_pictures(
                        f"{task}-{i + 1}" if i else task, results, share if i else _MOST_BYTES
                    ),
                ],
            )
            for i, (system, results) in enumerate((s, with_counts[s]) for s in order)
        ]
        blocks.append(Choice(options))
    blocks += [table for table in (measures_table(runs), labels_table(runs)) if table is not None]
    blocks += _worst(runs)
    count = len(next(iter(runs.values()))[0].class_names or ()) if runs else 0
    classes = f", {count} classes" if count else ""
    return Details(f"{task}{classes}", blocks) if blocks else None


def _best_first(systems: Runs) -> tuple[list[System], str]:
    """The methods, the best first, and what that means."""
    validation = {
        system: [
            max(accuracies)
            for r in results
            if (accuracies := [v for v in r.selection.values() if v is not None])
        ]
        for system, results in systems.items()
    }
    if all(validation.values()):
        values, why = validation, "the best method on validation data comes first"
    else:
        values = {s: [r.accuracy for r in results] for s, results in systems.items()}
        why = "the best method on test comes first"
    order = sorted(systems, key=lambda s: -stat(values[s]).mean)
    return order, why if len(order) > 1 else f"of {order[0].label}"


def _names(results: Sequence[Result]) -> list[str]:
    """Class names; numbers where none are stored."""
    if names := results[0].class_names:
        return [str(n) for n in names]
    largest = max((max(t, p) for r in results for t, p, _ in r.confusion or ()), default=0)
    size = max([largest + 1, *(len(r.per_class_accuracy or ()) for r in results)])
    return [str(i) for i in range(size)]


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _confusion(results: Sequence[Result], names: list[str]) -> Block:
    """All seeds' counts together: a matrix, or the most frequent pairs of many classes."""
    counts, totals = Counts(), Counter[int]()
    for result in results:
        for true, predicted, count in result.confusion or ():
            counts[true, predicted] += count
            totals[true] += count
    seeds = f"{len(results)} seed{'s' if len(results) > 1 else ''} added up"
    if len(names) <= _HEAT_MAP and all(max(pair) < len(names) for pair in counts):
        every = range(len(names))
        shares = [[counts[t, p] / max(totals[t], 1) for p in every] for t in every]
        caption = (
            f"Confusion matrix, {seeds}: a row is a true class, and its cells say in % what it was "
            "taken for. Blue is right, red is wrong."
        )
        return Heat(caption, names, shares)
    wrong = [(n, t, p) for (t, p), n in counts.items() if t != p]
    wrong.sort(key=lambda x: (-x[0], x[1:]))
    rows = [
        Row(
            [
                name_cell(_name(names, t)),
                name_cell(_name(names, p)),
                number_cell(n),
                number_cell(100 * n / totals[t], ".1f"),
            ]
        )
        for n, t, p in wrong[:_PAIRS]
    ]
    columns = [Column("true class", numeric=False), Column("taken for", numeric=False)]
    columns += [Column("images"), Column("% of the class")]
    if not rows:
        return Text("No image was taken for another class.")
    more = f" of {len(wrong):,}" if len(wrong) > _PAIRS else ""
    return Table(f"The {len(rows)} most frequent confusions{more}, {seeds}.", columns, rows)


def _worst(runs: Runs) -> list[Block]:
    """Table of the classes with the lowest mean over methods, with each method's mean over its
    seeds."""
    names: list[str] = []
    by_class: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for system, results in runs.items():
        for result in results:
            names = names or [str(n) for n in result.class_names or ()]
            for i, accuracy in enumerate(result.per_class_accuracy or ()):
                if accuracy is not None:
                    by_class[i][system.label].append(accuracy)
    if not by_class:
        return []
    means = {i: {k: stat(v).mean for k, v in values.items()} for i, values in by_class.items()}
    mean = {i: stat([*values.values()]).mean for i, values in means.items()}
    order = sorted(means, key=lambda i: (mean[i], i))[:_WORST]
    labels = [s.label for s in runs if any(s.label in row for row in means.values())]
    rows = []
    for i in order:
        best = max(means[i].values())
        cells = [
            Cell() if (v := means[i].get(k)) is None else Cell(f"{v:.1f}", v, bold=v == best)
            for k in labels
        ]
        rows.append(Row([name_cell(_name(names, i)), number_cell(mean[i], ".1f"), *cells]))
    columns = [Column("class", numeric=False), Column("mean", strong=True), *map(Column, labels)]
    of = f" of {len(means)}" if len(means) > len(rows) else ""
    caption = f"The {len(rows)} worst classes{of}: accuracy on test in %, mean over the seeds."
    return [Table(caption, columns, rows)]


def _pictures(name: str, results: Sequence[Result], most: int) -> list[Block]:
    """Pictures of the first seed that has any, of at most so many bytes."""
    for result in results:
        examples = result.examples
        if not examples or not examples["true"]:
            continue
        names, jpeg = _names(results), _strip(result.workdir, examples)
        if jpeg is None:
            return [Text(f"The pictures of `{result.cell}` are missing or broken.")]
        if len(jpeg) > most:
            return [Text(f"Pictures are in `{examples['file']}`; here they would take too much.")]
        entries = [
            (_name(names, t), _name(names, p), t == p)
            for t, p in zip(examples["true"], examples["predicted"], strict=True)
        ]
        text = (
            f"Pictures of the test split, drawn at random, as `{result.cell}` sees them: first "
            "those it got wrong (true → predicted), then those it got right."
        )
        return [Text(text), Tiles(f"examples-{name}", jpeg, entries)]
    return []


def _strip(workdir: str, examples: Examples) -> bytes | None:
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
