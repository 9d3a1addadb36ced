"""`compare`: asserts a relative error and reports it in a table at the end of `make parity`."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from stored.cases import relative_errors
from torch_models import import_timm

import_timm()  # transformers imports torchvision, too, and needs the same preparation

_MEASURED: list[tuple[str, str, float, float]] = []


def pytest_configure(config):
    # peft asks transformers' models for it.
    config.addinivalue_line(
        "filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    )


@pytest.fixture
def compare(request, record_property):
    """``compare(actual, expected, bound)`` of two dicts of arrays, float32 relative errors."""

    def compare(actual: dict, expected: dict, bound: float) -> None:
        errors = relative_errors(actual, expected)
        for name, error in errors.items():
            record_property(name, error)
        worst = max(errors, key=lambda name: errors[name])
        _MEASURED.append((request.node.nodeid.rpartition("/")[2], worst, errors[worst], bound))
        assert errors[worst] <= bound, f"relative errors {errors}; the bound is {bound}"

    return compare


@pytest.fixture
def drawn(monkeypatch):
    """A list of what jax.random.bernoulli gives, (mask, probability), as programs report it."""
    masks, bernoulli = [], jax.random.bernoulli

    def report(mask, p):
        masks.append((np.array(mask), float(p)))

    def spy(key, p, shape):
        mask = bernoulli(key, p, shape)
        jax.debug.callback(report, mask, p, ordered=True)
        return mask

    monkeypatch.setattr(jax.random, "bernoulli", spy)
    jax.clear_caches()
    return masks


def pytest_terminal_summary(terminalreporter):
    if not _MEASURED:
        return
    terminalreporter.section("largest relative error of each comparison: max|a - b| / max|b|")
    width = max(len(name) for name, *_ in _MEASURED)
    for name, array, error, bound in _MEASURED:
        line = f"{name:{width}}  {error:.1e}  (bound {bound:.0e}, {array})"
        terminalreporter.write_line(line)
