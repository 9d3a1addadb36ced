"""The pictures' shared parts: Matplotlib without a screen, and a command for one picture."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402, F401

RESULTS = Path("benchmarks/results")


def command(
    doc: str | None, draw: Callable[[dict[str, Any], Path], None], record: str, picture: str
) -> None:
    """Draws a stored result; both files can be given."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=RESULTS / record)
    parser.add_argument("--out", type=Path, default=Path(picture))
    args = parser.parse_args()
    draw(json.loads(args.record.read_text()), args.out)
    print(f"Wrote {args.out}.")
