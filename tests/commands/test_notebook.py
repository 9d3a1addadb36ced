"""The Colab notebook runs from top to bottom, here with a short setting and without a network."""

import copy
import json
import os
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOK = ROOT / "notebooks" / "fact_vtab_tpu.ipynb"
METHODS = ("fact_tt", "linear")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def text_of(cell) -> str:
    """The text that a cell printed or displayed, without warnings."""
    told = [out for out in cell.outputs if out.get("name") != "stderr"]
    parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in told]
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(parts))  # without colours


def install_cell(notebook):
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and '"pip"' in c.source)
    return cell.source


def test_notebooks_are_valid_and_stripped_and_install_alike():
    """Notebooks for folders of pictures install no TFDS."""
    notebooks = {path.stem: nbformat.read(path, 4) for path in NOTEBOOK.parent.glob("*.ipynb")}
    for notebook in notebooks.values():
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    vtab, fewshot, light, many = (
        install_cell(notebooks[name])
        for name in ("fact_vtab_tpu", "fewshot", "your_pictures", "many_tasks")
    )
    assert vtab == fewshot == light.replace("extras = []", 'extras = ["report", "tfds"]')
    assert many == light


def execute(notebook, parameters, folder):
    """Runs it from top to bottom on 2 CPU devices and without a network, with these parameters."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(cells) == 1
    unknown = [name for name in parameters if f"\n{name} = " not in f"\n{cells[0].source}"]
    assert not unknown
    cells[0].source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())

    # A kernel of this very interpreter, whatever kernels the machine has.
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    kernel = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JAX_PLATFORMS", "cpu")
        flags = "--xla_force_host_platform_device_count=2"
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}")
        for name in ("http_proxy", "https_proxy"):  # a closed port: no network
            patch.setenv(name, "http://127.0.0.1:9")
        patience = {"timeout": 1200, "startup_timeout": 300, "iopub_timeout": 120}
        resources = {"metadata": {"path": str(ROOT / "notebooks")}}
        client = NotebookClient(notebook, resources=resources, **patience)
        client.execute()


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    """The executed notebook and its work directory: one epoch, 64 images."""
    notebook, folder = copy.deepcopy(notebook), tmp_path_factory.mktemp("notebook")
    short = {"epochs": 1, "warmup_epochs": 0, "train_limit": 64, "eval_limit": 64}
    short["eval_batch_size"] = 64
    offline = {"tasks": "location", "methods": ",".join(METHODS), "seeds": (0,)}
    mock = {"variant": "vit_ti16", "image_size": 32, "mock_data": True, "download": False}
    parameters = {
        "WORKDIR": str(folder / "work"),
        "VTAB_TASKS": "svhn",
        "QUICKSTART_CHANGES": {**short, **offline, "data_dir": str(folder / "tfds")},
        "VTAB_CHANGES": {**short, **mock, "fact_tt": {"scales": (1.0,)}},
        "RANDOM_VIT": True,
    }
    execute(notebook, parameters, folder)
    return notebook, folder / "work"


def printed(notebook, source: str) -> str:
    """The output of the one code cell that contains `source`."""
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and source in c.source)
    return text_of(cell)


def test_quickstart_table_and_factor_files(executed):
    notebook, work = executed
    table = printed(notebook, "show_table(quick")
    assert "these numbers measure nothing" in table
    results = [json.loads(p.read_text()) for p in (work / "quickstart" / "results").glob("*.json")]
    assert {r["method"] for r in results} == set(METHODS)
    for task in {r["task"] for r in results}:
        row = next(line for line in table.splitlines() if f" {task} " in line)
        for result in (r for r in results if r["task"] == task):
            assert f"{result['accuracy']:.1f}" in row
            assert (work / "quickstart" / "factors" / f"{result['cell']}.safetensors").exists()
    assert any(
        "image/png" in out.get("data", {}) for c in notebook.cells for out in c.get("outputs", ())
    )


def test_vtab_runs_over_all_devices_and_says_that_its_weights_are_random(executed):
    notebook, work = executed
    text = printed(notebook, "show_table(vtab")
    assert "the weights are random numbers" in text
    names = sorted(p.stem for p in (work / "vtab" / "factors").glob("*.safetensors"))
    assert names == ["svhn-fact_tt-seed42"]
    result = json.loads((work / "vtab" / "results" / "svhn-fact_tt-seed42.json").read_text())
    assert result["settings"]["dtype"] == "bfloat16"
    assert result["environment"]["device"] == "2 x cpu"


def test_factor_file_and_library_example(executed):
    notebook, _ = executed
    assert "factors/U" in printed(notebook, "safe_open(path")
    text = printed(notebook, "fact_jax.merge")
    assert re.search(r"correct: \d+ of the first 200 test images", text)
