"""The library examples of README and docs run as printed, and files that they name are there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from places import ROOT

import fact_jax


def python_of(page):
    """Code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_library_examples_run(monkeypatch, tmp_path):
    """Five lines, then a training loop that goes on with their names."""
    monkeypatch.chdir(tmp_path)
    five, loop = python_of("docs/tutorials/library.md")
    assert python_of("README.md") == [five]
    assert len(five.strip().splitlines()) == 5
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    names = {"fact_jax": fact_jax, "jax": jax, "jnp": jnp, "optax": optax, "images": images}
    exec(five, names)
    assert names["x"].shape == (2, 128)
    merged = fact_jax.features(names["model"], names["merged"], images)
    np.testing.assert_allclose(merged, names["x"], rtol=1e-4, atol=1e-4)
    names["labels"] = np.array([3, 7])
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to a whole number
        exec(loop, names)
    assert names["value"] < np.log(10)
    head = names["task"].head
    adaptation = names["method"].adaptation(names["task"].factors, names["model"].config)
    x = fact_jax.features(names["model"], names["base"], images, adaptation)
    expected = x @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4)


def test_the_example_of_arithmetic_runs():
    """Its sum of two tasks loses nothing, and its merged weights come apart again."""
    (code,) = python_of("docs/rounding.md")
    names = {"fact_jax": fact_jax, "jax": jax}
    exec(code, names)
    assert names["task"].error < 1e-6
    for old, new in zip(*map(jax.tree.leaves, (names["base"], names["again"])), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)


def test_files_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 90
    for link in re.findall(r"\]\(((?!http)[^)#]+)[)#]", text):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"configs/(\w+)\.py", text):
        assert (ROOT / "configs" / f"{name}.py").exists(), name
