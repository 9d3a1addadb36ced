"""docs/adding_a_method.md keeps its word: its code blocks are run as they stand."""

import importlib.util
import inspect
import re
import sys

import pytest
from places import ROOT
from rich.console import Console
from test_grid import predicted_accuracy

from configs import quickstart
from fact_jax import load_factors
from fact_jax.cli.local import run_sweep
from fact_jax.sweep.plan import make_plan
from fact_jax.tuning import METHODS
from fact_jax.tuning.registry import describe

PAGE = ROOT / "docs" / "adding_a_method.md"
METHOD, REGISTRATION, CONFIG, TEST = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def module(name, code, folder):
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def vera(monkeypatch, tmp_path):
    """The method as if its file lay in the package; all is undone afterwards."""
    name = "fact_jax.tuning.vera"
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(METHODS, "vera", None)  # so that both are taken out again
    made = module(name, METHOD, tmp_path)
    exec(REGISTRATION, {})
    return made.VeRA


def test_the_method_has_at_most_fifty_lines_and_is_not_in_the_library():
    lines = METHOD.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert f"`fact_jax/tuning/vera.py`, {len(lines)} lines" in PAGE.read_text()
    assert "vera" not in METHODS


def test_registration_is_a_line(vera):
    assert METHODS["vera"] is vera
    assert describe(vera(rank=3)) == ("vera", {"rank": 3, "scale": 1.0, "seed": 0})


@pytest.mark.parametrize("name", re.findall(r"def (test_\w+)", TEST))
def test_its_own_test_passes(vera, name, request):
    namespace = {}
    exec(TEST, namespace)
    test = namespace[name]
    test(**{k: request.getfixturevalue(k) for k in inspect.signature(test).parameters})


def test_its_config_makes_a_plan(vera, tmp_path):
    namespace = {}
    exec(CONFIG, namespace)
    cells = make_plan(namespace["get_config"]())
    assert len(cells) == 19
    assert {(cell.method, len(cell.candidates)) for cell in cells} == {(vera(256), 3)}


def test_a_sweep_trains_it_and_its_file_can_be_read(vera, tmp_path):
    config = quickstart.get_config()
    config.update(tasks="digits", methods="vera", epochs=2, warmup_epochs=0)
    config.update(train_limit=64, eval_limit=64, batch_size=16, learning_rate=0.03)
    config.data_dir, config.vera = str(tmp_path / "data"), {"rank": 8}
    (result,) = run_sweep(config, str(tmp_path / "run"), Console(quiet=True))
    assert result["num_factors"] == 2 * 6 * (8 + 128)
    assert result["losses"][-1] < result["losses"][0]
    read = load_factors(tmp_path / "run" / "factors" / f"{result['cell']}.safetensors")
    assert read.method == vera(8)
    assert all(abs(read.factors[name]).max() > 0 for name in ("b_q", "b_v"))  # they were trained
    accuracy, _ = predicted_accuracy(config, tmp_path / "run", result)
    assert accuracy == pytest.approx(result["accuracy"])
