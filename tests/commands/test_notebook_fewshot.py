"""The few-shot notebook runs from top to bottom: offline tasks, and a folder of Pets with lists."""

import copy
import json

import nbformat
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from test_notebook import execute, printed

from fact_jax.data import get_task

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "notebooks" / "fewshot.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def write_pets(folder):
    """The set as people have it, with CoOp's lists of the true lengths."""
    task, rng, content = get_task("oxford_pets_2shot"), np.random.default_rng(0), {}
    (folder / "images").mkdir(parents=True)
    for split, size in task.few_shot.list_sizes.items():
        entries = content[split] = []
        for i in range(size):
            label = i % task.num_classes
            entries.append([f"{split}_{i}.jpg", label, f"breed {label}"])
            picture = rng.integers(0, 256, (4, 5, 3), np.uint8)
            Image.fromarray(picture).resize((50, 40)).save(folder / "images" / entries[-1][0])
    (folder / task.few_shot.json).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def executed(notebook, tmp_path_factory):
    notebook, folder = copy.deepcopy(notebook), tmp_path_factory.mktemp("notebook")
    write_pets(folder / "own" / "oxford_pets")
    short = {"shots": (1, 2), "seeds": (0,), "epochs": 2, "warmup_epochs": 0}
    short |= {"eval_limit": 64, "eval_batch_size": 64}
    small = {"shots": (2,), "variant": "vit_mini", "image_size": 32}
    parameters = {
        "WORKDIR": str(folder / "work"),
        "METHODS": "fact_tt",
        "FINE_GRAINED": "oxford_pets",
        "DATA_DIR": str(folder / "own"),
        "OFFLINE_CHANGES": {**short, "tasks": "digits", "data_dir": str(folder / "tfds")},
        "FINE_GRAINED_CHANGES": {**short, **small},
    }
    execute(notebook, parameters, folder)
    return notebook, folder


@pytest.mark.parametrize(
    ("source", "name", "tasks"),
    [
        ("show(offline", "fewshot-offline", {"digits_1shot", "digits_2shot"}),
        ("show(paper", "fewshot-paper", {"oxford_pets_2shot"}),
    ],
)
def test_tables_and_figures(executed, source, name, tasks):
    notebook, folder = executed
    text = printed(notebook, source)
    results = [
        json.loads(p.read_text()) for p in (folder / "work" / name / "results").glob("*.json")
    ]
    assert {r["task"] for r in results} == tasks
    for r in results:
        assert f"{r['accuracy']:.1f}" in text
    assert "these numbers measure nothing" in text
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and source in c.source)
    assert any("image/png" in out.get("data", {}) for out in cell.outputs)


def test_the_own_folder_is_read_and_shown(executed):
    notebook, folder = executed
    text = printed(notebook, "source.provenance['split_source']")
    assert f"CoOp's lists in {folder / 'own' / 'oxford_pets'}" in text
    checked = printed(notebook, '"experiments.data", "--check"')
    assert "oxford_pets_16shot" in checked
    assert "ready" in checked
