"""The notebook of many tasks runs from top to bottom, with three of them."""

import copy
import json
import re

import nbformat
from places import ROOT
from test_notebook import execute, printed

NOTEBOOK = ROOT / "notebooks" / "many_tasks.ipynb"
COUNT = 3


def test_trains_shrinks_mixes_and_combines(tmp_path):
    notebook = copy.deepcopy(nbformat.read(NOTEBOOK, as_version=4))
    changes = {"epochs": 1, "warmup_epochs": 0}
    parameters = {"WORKDIR": str(tmp_path / "work"), "NUM_TASKS": COUNT, "CHANGES": changes}
    execute(notebook, parameters, tmp_path)
    run = tmp_path / "work" / f"many_tasks-{COUNT}"
    results = [json.loads(path.read_text()) for path in (run / "results").glob("*.json")]
    assert len(results) == COUNT * 2 * 2  # two methods, two seeds
    assert {result["num_train"] for result in results} == {40}

    whole, small = (
        int(text.replace(",", ""))
        for text in re.findall(r": ([\d,]+) bytes", printed(notebook, "round_files("))
    )
    files = [path.stat().st_size for path in (run / "small").glob("*.safetensors")]
    assert (len(files), sum(files)) == (COUNT, small)
    assert small < whole / 4

    answers = printed(notebook, "bank.predict(").splitlines()
    assert [line.partition(":")[0] for line in answers[:COUNT]] == [
        "folder_digits_0_1",
        "folder_fashion_0_1",
        "folder_location_0_1",
    ]
    one = [r["accuracy"] for r in results if (r["method"], r["seed"]) == ("fact_tt", 0)]
    assert answers[COUNT] == f"one seed: {sum(one) / COUNT:.1f} %"
    assert re.search(r"2 seeds together: [\d.]+ %", printed(notebook, "seeds together"))
    error = re.search(r"error (\S+)", printed(notebook, "rounded = round_to("))
    assert error
    assert float(error[1]) < 1e-5
