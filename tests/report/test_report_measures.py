"""Tables of measures besides the accuracy, and what candidates were chosen by."""

import dataclasses

import pytest
from report_results import result

from fact_jax.report.curves import _chosen_by
from fact_jax.report.measures import labels_table, measures_table
from fact_jax.report.sections import plain_section
from fact_jax.report.study import sweep_systems
from fact_jax.sweep.result import Result


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a method, with measures."""

    def made(**fields):
        results = []
        for seed, ece in ((0, 4.0), (1, 6.0)):
            content = result("digits", "fact_tt", seed)
            known = {f.name for f in dataclasses.fields(Result)}
            content = {k: v for k, v in content.items() if k in known}
            measures = {"accuracy": 90.0, "auroc": None, "ece": ece}
            results.append(Result(**{**content, "measures": measures, **fields}))
        return {sweep_systems(results, {})[0]: results}

    return made


def test_measures_are_means_over_seeds_with_their_errors(runs):
    table = measures_table(runs())
    assert [column.title for column in table.columns] == ["method", "accuracy", "AUROC", "ECE"]
    (row,) = table.rows
    assert [(cell.text, cell.note) for cell in row.cells[1:]] == [
        ("90.0", "± 0.0"),
        ("", ""),
        ("5.0", "± 1.0"),
    ]
    assert measures_table(runs(measures=None)) is None


def test_labels_have_their_own_precision(runs):
    labelled = runs(label_precision=[80.0, None], class_names=["warm", "bright"])
    table = labels_table(labelled)
    assert [row.cells[0].text for row in table.rows] == ["warm", "bright"]
    assert [row.cells[1].text for row in table.rows] == ["80.0", ""]
    assert labels_table(runs()) is None


def test_labels_are_told_by_their_names(runs):
    """In two work directories a task may have other labels, after a change of its file."""
    first = runs(label_precision=[80.0, 60.0], class_names=["warm", "bright"])
    second = runs(label_precision=[40.0, 70.0, 10.0], class_names=["bright", "warm", "new"])
    table = labels_table({**first, **second})
    texts = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table.rows}
    assert texts == {
        "warm": ["80.0", "70.0"],
        "bright": ["60.0", "40.0"],
        "new": ["", "10.0"],
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "accuracy"),
        ({"settings": {"select_by": "macro_f1"}}, "macro-F1"),
        ({"label_precision": [1.0]}, "mAP"),
        ([{}, {"label_precision": [1.0]}], "accuracy or mAP"),
    ],
)
def test_curves_of_candidates_name_the_measure_they_were_chosen_by(runs, fields, words):
    kinds = fields if isinstance(fields, list) else [fields]
    systems = [system for kind in kinds for system in runs(**kind)]
    assert _chosen_by(systems, plain_section("", "", ["digits"])) == words
