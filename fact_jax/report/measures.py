"""Measures of a task's results besides the accuracy that counts (`training/metrics.py`)."""

from collections.abc import Mapping, Sequence

from fact_jax.report.averages import stat
from fact_jax.report.study import System
from fact_jax.report.table import MISSING, Column, Row, Table, name_cell, stat_cell
from fact_jax.sweep.result import Result

# Names of measures, their headers, and what they are.
MEASURES = {
    "accuracy": ("accuracy", "share of the images that are classified right"),
    "map": ("mAP", "mean average precision over the labels"),
    "exact": ("all right", "share of the images with all labels right"),
    "balanced_accuracy": ("balanced", "mean of the accuracies of the classes"),
    "macro_f1": ("macro-F1", "mean of the classes' F1: of precision and recall together"),
    "auroc": ("AUROC", "how well each class is ranked above the rest; 50 is chance"),
    "ece": ("ECE", "expected calibration error: how far the stated probabilities are off"),
}

Runs = Mapping[System, Sequence[Result]]


def measures_table(runs: Runs) -> Table | None:
    """All measures of the systems on a task; None where no result has any."""
    present = [
        name
        for name in MEASURES
        if any(name in (r.measures or {}) for results in runs.values() for r in results)
    ]
    if not present:
        return None
    rows = []
    for system, results in runs.items():
        cells = []
        for name in present:
            values = [v for r in results if (v := (r.measures or {}).get(name)) is not None]
            cells.append(stat_cell(stat(values), 1) if values else MISSING)
        rows.append(Row([name_cell(system.label, system.style.color), *cells]))
    columns = [Column("method", numeric=False)]
    columns += [Column(MEASURES[name][0], hint=MEASURES[name][1]) for name in present]
    notes = [f"{title}: {what}." for name in present for title, what in [MEASURES[name]]]
    return Table("Measures on test, last epoch, %.", columns, rows, notes)


def labels_table(runs: Runs) -> Table | None:
    """Average precision of each label of a task with several; None for other tasks."""
    labelled = {s: [r for r in results if r.label_precision] for s, results in runs.items()}
    labelled = {system: results for system, results in labelled.items() if results}
    if not labelled:
        return None
    names = dict.fromkeys(
        name for results in labelled.values() for r in results for name in _by_label(r)
    )
    rows = []
    for name in names:
        cells = []
        for results in labelled.values():
            values = [v for r in results if (v := _by_label(r).get(name)) is not None]
            cells.append(stat_cell(stat(values), 1) if values else MISSING)
        rows.append(Row([name_cell(name), *cells]))
    columns = [Column("label", numeric=False), *(Column(s.label) for s in labelled)]
    return Table("Average precision of each label on test, %.", columns, rows)


def _by_label(result: Result) -> dict[str, float | None]:
    """Average precision by the label's name, or by its number if it has none."""
    precisions = result.label_precision or ()
    names = result.class_names or range(len(precisions))
    return {str(name): value for name, value in zip(names, precisions, strict=True)}
