"""Published numbers (`published.json`, each row with its source and remarks)."""

from __future__ import annotations

import functools
import json
from pathlib import Path


@functools.cache
def published() -> dict:
    """The whole file: `vtab1k`, `vtab1k_independent_rerun`, `fact_reference_configs`, ..."""
    return json.loads((Path(__file__).parent / "published.json").read_text())


def reference_settings(form: str) -> dict[str, dict[str, float]]:
    """Rank and scale per task as released with the paper; `form` is 'tt' or 'tk'."""
    return published()["fact_reference_configs"][form]
