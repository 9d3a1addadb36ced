"""A report of sweeps: ``python -m experiments.report --workdir DIR [--workdir DIR2 ...]``.

Writes DIR/report/index.html, a page that needs no network, report.md, results.csv and the figures
as PNG and SVG.
"""

from __future__ import annotations

from importlib.util import find_spec

from absl import flags

from fact_jax.cli import process
from fact_jax.errors import UserError
from fact_jax.report.page import write_report
from fact_jax.text import say

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Work directory of a sweep; several may be given.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Where to write; by default the first --workdir's report/.")


def main() -> None:
    if missing := [name for name in ("matplotlib", "scipy") if find_spec(name) is None]:
        raise UserError(
            f"The report needs {' and '.join(missing)}: pip install 'fact-jax[report]'."
        )
    folder = write_report(_WORKDIR.value, _OUT.value)
    say(f"Wrote {folder / 'index.html'}, report.md, results.csv and the figures.")


def start() -> None:
    """Runs the command with the arguments of this process."""
    process.run(main)
