"""The notebook for one's own pictures runs from top to bottom, on the folder that it draws."""

import copy
import re
import subprocess

import nbformat
import pytest
from places import ROOT
from test_notebook import execute, install_cell, printed

NOTEBOOK = ROOT / "notebooks" / "your_pictures.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.parametrize(
    ("libtpu", "shown", "extra"),
    [
        ("0.0.1", None, "tpu"),
        (None, "| Driver Version: 580.1   CUDA Version: 13.0 |", "gpu"),
        (None, "| Driver Version: 550.1   CUDA Version: 12.4 |", "gpu12"),
        (None, "", None),
        (None, None, None),
    ],
)
def test_jax_is_installed_for_the_runtime_s_accelerator(
    notebook, monkeypatch, libtpu, shown, extra
):
    (function,) = re.findall(r"^def accelerator.*?\n\n\n", install_cell(notebook), re.M | re.S)
    done = subprocess.CompletedProcess([], 0 if shown else 1, stdout=shown or "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr("shutil.which", lambda name: None if shown is None else f"/bin/{name}")
    imports = "import os, re, shutil, subprocess\n"
    names = {"version": lambda package: libtpu if package == "libtpu" else None}
    exec(imports + function, names)
    assert names["accelerator"]() == extra


def test_trains_reports_and_predicts_on_a_made_up_folder(notebook, tmp_path):
    notebook = copy.deepcopy(notebook)
    changes = {"epochs": 8, "warmup_epochs": 1, "methods": "fact_tt"}
    execute(notebook, {"WORKDIR": str(tmp_path / "work"), "CHANGES": changes}, tmp_path)
    assert "3 classes, 24 test pictures" in printed(notebook, "draw_shapes(pictures")
    run = tmp_path / "work" / "shapes-quickstart"
    assert "folder_shapes" in printed(notebook, "run_sweep(config")
    assert str(run / "report" / "index.html") in printed(notebook, "write_report([run])")
    lines = printed(notebook, "predictor.stream").splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"\w+/\d+\.png: \w+ \(\d+%\)", line) for line in lines)
