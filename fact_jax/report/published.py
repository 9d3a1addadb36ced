"""Published numbers (`published.json`, each row with its source and remarks)."""

import functools
import json
from pathlib import Path


@functools.cache
def published() -> dict:
    """The whole file: `vtab1k`, `vtab1k_independent_rerun`, `fewshot_fgvc`, ..."""
    return json.loads((Path(__file__).parent / "published.json").read_text())
