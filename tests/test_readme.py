"""The README's library example runs as printed; the tables of docs/comparison.md."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import fact_jax
from benchmarks import comparison
from benchmarks.plot_compare import NAMES

ROOT = Path(__file__).parent.parent


def test_the_library_example_runs():
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.strip().splitlines()) == 5
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    names = {"fact_jax": fact_jax, "jax": jax, "images": images}
    exec(code, names)
    assert names["x"].shape == (2, 128)
    merged = fact_jax.features(names["model"], names["merged"], images)
    np.testing.assert_allclose(merged, names["x"], rtol=1e-4, atol=1e-4)


def test_files_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"configs/(\w+)\.py", text):
        assert (ROOT / "configs" / f"{name}.py").exists(), name


def test_the_tables_of_all_methods_are_those_of_the_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = comparison.PAGE.read_text()
    assert page == comparison.with_tables(page)
    for name in comparison.TABLES:
        table = page.split(f"<!-- {name} -->\n")[1].split("\n\n")[0]
        assert len(table.splitlines()) == 2 + len(NAMES), name
    assert comparison.with_tables(page.replace("| LoRA | ", "| LoRA | 1")) == page


def test_a_method_without_one_of_the_seeds_has_no_row():
    cells = [{"method": "lora", "task": "digits", "seed": s, "accuracy": 90.0 + s} for s in (0, 1)]
    with pytest.raises(SystemExit, match="lora.*digits.*2"):
        comparison.accuracy(cells, ("digits",))
