"""The tables of a sweep in the terminal, which show the page's rows."""

import io

import pytest
from report_results import rows_of
from rich.console import Console

from fact_jax.data import VTAB
from fact_jax.report.tables import terminal_table
from fact_jax.report.terminal import print_table


def cells(results, tasks, rows=None):
    """The cells of each line, by the first cell of the line."""
    console = Console(record=True, width=300, file=io.StringIO())
    console.print(terminal_table(results, tasks, rows))
    lines = [line.split("│")[1:-1] for line in console.export_text().splitlines()]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines if line}


def others(*tasks):
    """Enough other methods for a table with methods down."""
    return [r for m in "abcd" for r in rows_of(m, {task: [50.0] for task in tasks})]


def test_a_few_methods_stand_side_by_side_with_mean_error_and_cost():
    results = rows_of("fact_tt", {"dtd": [70.0, 71.0, 72.0]}, num_factors=61440, grid_size=5)
    table = cells(results, ["dtd"], {"fact_tt": "fact_tt_4"})
    assert table["dtd"][0] == "71.0 ± 0.6"
    assert table["group mean"] == ["-", "73.50", "75.94"]  # of rank 4 no tasks are published
    assert [table[name][0] for name in ("numbers", "bytes", "grid")] == ["61,440", "2,048", "5"]
    assert set(VTAB) < set(table)


def test_more_methods_stand_below_each_other_with_what_they_store_and_were_chosen_from():
    results = rows_of("lora", {"digits": [90.0, 92.0], "fashion": [80.0, 80.0]})
    results += rows_of("ssf", {"digits": [50.0]}, grid_size=1)
    searched = {"history": [{"tried": 10}, {"tried": 30}]}
    results += rows_of("noah", {"digits": [60.0], "fashion": [60.0]}, search=searched)
    table = cells(results + others("digits"), ["digits", "fashion"])
    costs = ["7", "2,048", "3"]
    assert table["lora"] == ["91.0 ± 1.0", "80.0 ± 0.0", "85.50 ± 0.50", *costs]
    assert table["ssf"][1:3] == ["-", "-"]  # no mean of a part
    assert table["noah"][-1] == "3 + 30"


@pytest.mark.parametrize("width", [20, 40, 80, 104])
def test_a_narrow_terminal_cuts_no_name_and_no_number(width):
    tasks = ["digits", "fashion", "texture"]
    methods = ("vpt_shallow", "fact_tt", "convpass", "a_method_of_ones_own_of_a_long_name", "lora")
    for count, planned in ((4, tasks), (5, tasks), (4, list(VTAB)), (5, list(VTAB))):
        shown = methods[:count]
        results = [r for m in shown for r in rows_of(m, {t: [90.0, 92.0] for t in planned})]
        console = Console(width=width, file=io.StringIO())
        print_table(console, terminal_table(results, planned))
        text = console.file.getvalue()
        assert all(name in text for name in (*shown, *(tasks if planned is tasks else ())))
        assert text.count("91.0 ± 1.0") >= (count * 3 if planned is tasks else 0)
        assert "…" not in text
        assert len({len(line) for line in text.splitlines()[1:]}) == 1  # none is cut or folded


def test_vtab_s_means_have_their_seeds_error_and_the_published_rows_below():
    values = {task: [90.0, 92.0] for task in VTAB}
    results = rows_of("lora", values) + rows_of("ssf", {**values, "dtd": [90.0]})
    table = cells(results + others("dtd"), list(VTAB), {"lora": "lora", "ssf": "ssf"})
    assert table["lora"][:5] == ["91.00 ± 1.00"] * 5
    assert table["ssf"][:2] == ["90.86", "91.00 ± 1.00"]  # natural: its tasks' seeds differ
    assert table["published lora (best on test)"][3] == "74.60"
    assert table["re-run lora (OSU, val)"][3] == "75.24"
    assert table["published ssf"][3] == "75.69"


def test_a_few_tasks_of_vtab_have_their_mean_and_a_method_without_results_its_column():
    results = rows_of("mine", {"dtd": [60.0, 62.0], "svhn": [80.0, 80.0]})
    table = cells(results + others("dtd"), ["dtd", "svhn"])
    assert table["mine"][:3] == ["61.0 ± 1.0", "80.0 ± 0.0", "70.50 ± 0.50"]
    table = cells(results, ["dtd", "svhn"], {"mine": "", "another": ""})
    assert table["numbers"] == ["7", "-"]


def test_each_method_has_its_own_re_run_column():
    results = rows_of("lora", {"dtd": [60.0]}) + rows_of("adaptformer", {"dtd": [60.0]})
    table = cells(results, ["dtd"], {"lora": "lora", "adaptformer": "adaptformer"})
    assert table["group mean"] == ["-", "74.60", "75.24", "-", "74.75", "75.97"]
