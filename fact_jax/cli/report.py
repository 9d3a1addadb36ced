"""A report of sweeps.

    python -m experiments.report --workdir runs/compare
    python -m experiments.report --workdir runs/tt4 --workdir runs/tt16 --out report

Writes DIR/report/index.html, a page that needs no network, report.md, results.csv and the figures
as PNG and SVG.
"""

from absl import flags
from etils import epath

from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.report.page import write_report
from fact_jax.text import say


def define_flags() -> None:
    """Defines --workdir and --out."""
    flags.DEFINE_multi_string("workdir", [], "Work directory of a sweep")
    flags.DEFINE_string("out", None, "Where to write; by default the first --workdir's report/.")


def check_workdirs(workdirs: list[str]) -> None:
    """Raises UserError if none is given, or several with commas between them."""
    if not workdirs:
        raise UserError("Give the work directory of a sweep: --workdir DIR.")
    for text in workdirs:
        if "," in text and not epath.Path(text).exists():  # fewshot-lora,noah is a good name
            line = command("report", *(f"--workdir={name}" for name in text.split(",") if name))
            raise UserError(f"There is no {text!r}. For several, repeat the flag: {line}")


def main() -> None:
    require("The report", "report", "matplotlib", "scipy")
    check_workdirs(flags.FLAGS.workdir)
    folder = write_report(flags.FLAGS.workdir, flags.FLAGS.out)
    say(f"Wrote {folder / 'index.html'}, report.md, results.csv and the figures.")
