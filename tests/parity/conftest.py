"""`compare`: asserts a relative error and reports it in a table at the end of `make parity`."""

from __future__ import annotations

import pytest
from stored.cases import relative_errors
from torch_models import import_timm

import_timm()  # transformers imports torchvision, too, and needs the same preparation


@pytest.fixture
def compare(record_property):
    """``compare(actual, expected, bound)`` of two dicts of arrays, float32 relative errors."""

    def compare(actual: dict, expected: dict, bound: float) -> None:
        errors = relative_errors(actual, expected)
        for name, error in errors.items():
            record_property(name, error)
        worst = max(errors, key=lambda name: errors[name])
        record_property("compared", (worst, errors[worst], bound))
        assert errors[worst] <= bound, f"relative errors {errors}; the bound is {bound}"

    return compare


def pytest_terminal_summary(terminalreporter):
    """From the reports, since the tests may have run in other processes."""
    measured = [
        (report.nodeid.rpartition("/")[2], *value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in report.user_properties
        if name == "compared"
    ]
    if not measured:
        return
    terminalreporter.section("largest relative error of each comparison: max|a - b| / max|b|")
    width = max(len(name) for name, *_ in measured)
    for name, array, error, bound in sorted(measured):
        terminalreporter.write_line(f"{name:{width}}  {error:.1e}  (bound {bound:.0e}, {array})")
