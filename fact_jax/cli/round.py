"""A trained task in fewer numbers, or in another method's form, without training.

    python -m experiments.round --factors F.safetensors --out G.safetensors --rank 8
    python -m experiments.round --factors F.safetensors --out G.safetensors --error 0.1
    python -m experiments.round --factors FOLDER --out FOLDER --bytes 20000
    python -m experiments.round --factors LORA.safetensors --out G.safetensors --method fact_tt

Takes every task whose changes are low-rank increments: FacT, LoRA and their combinations. Of a
folder all factor files are rounded. Without --rank, --error and --bytes the rank stays.
"""

import os
from pathlib import Path

from absl import flags
from rich.table import Table

from fact_jax.algebra.rounding import NAMES
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask
from fact_jax.files.load import load_factors
from fact_jax.ranges import SIZE, Range, Real, Whole, check
from fact_jax.serving.outputs import check_not_input, prepare_output
from fact_jax.serving.rounding import RoundedTask, Target, round_task
from fact_jax.text import printable_line
from fact_jax.tuning.method import count_parameters
from fact_jax.tuning.registry import describe

SUFFIX = ".safetensors"
TARGETS: dict[str, Range] = {"rank": SIZE, "error": Real(0, 1), "bytes": Whole(1)}


def define_flags() -> None:
    """Defines --factors, --out and the targets."""
    flags.DEFINE_string("factors", "", "Factor file, or a folder of factor files.")
    flags.DEFINE_string("out", "", "The file to write, .safetensors; for a folder, a folder.")
    flags.DEFINE_integer("rank", None, "The rank to round to.")
    flags.DEFINE_float("error", None, "Most relative error; takes the smallest rank.")
    flags.DEFINE_integer("bytes", None, "Most bytes of a factor file; takes the largest rank.")
    flags.DEFINE_enum("method", None, NAMES, "Method to convert to; by default the task's own.")


def target_of(options: flags.FlagValues) -> Target:
    """What the flags ask for."""
    given = {name: options[name].value for name in TARGETS if options[name].value is not None}
    if len(given) > 1:
        raise UserError(f"--{' and --'.join(given)} are given; give one of them.")
    for name, value in given.items():
        check(f"--{name}", value, TARGETS[name])
    return Target(options.method, **given)


def files_of(factors: str, out: str) -> dict[Path, Path]:
    """Output by input file, for a file or for all factor files of a folder."""
    if not factors or not out:
        missing = "factors" if not factors else "out"
        raise UserError(f"--{missing} is missing. `{command('round', '--help')}` lists all.")
    if not os.path.isdir(factors):
        if Path(out).suffix != SUFFIX:
            raise UserError(f"--out {out!r} must end in {SUFFIX}.")
        return {Path(factors): Path(out)}
    if not (inputs := sorted(Path(factors).glob(f"*{SUFFIX}"))):
        raise UserError(f"--factors {factors} holds no factor file, no *{SUFFIX}.")
    if Path(out).suffix == SUFFIX or os.path.isfile(out):
        raise UserError(f"--factors {factors} is a folder; --out {out} must be a folder, too.")
    return {path: Path(out) / path.name for path in inputs}


def rows_of(task: TrainedTask, rounded: RoundedTask) -> list[list[str]]:
    """A row each for the task before and after."""
    result = rounded.rounded
    bound = "-" if result.bound is None else f"{result.bound:.3g}"
    before = [printable_line(task.path.name), *_method(task.method), "", ""]
    after = ["", *_method(result.method), f"{result.error:.3g}", bound]
    sizes = (task.factors, task.path.stat().st_size), (result.factors, len(rounded.content))
    for row, (factors, size) in zip((before, after), sizes, strict=True):
        row[3:3] = [f"{count_parameters(factors):,}", f"{size:,}"]
    return [before, after]


def _method(method: object) -> tuple[str, str]:
    return describe(method)[0], str(getattr(method, "rank", "-"))  # type: ignore[arg-type]


def main() -> None:
    console = Console()
    options = flags.FLAGS
    factors, out = (os.path.expanduser(path) for path in (options.factors, options.out))
    target, files = target_of(options), files_of(factors, out)
    for path, output in files.items():
        check_not_input(str(output), factors=str(path))
        prepare_output(str(output))
    table = Table("file", "method", "rank", "numbers", "bytes", "error", "bound")
    for column in table.columns[2:]:
        column.justify = "right"
    for path, output in files.items():
        task = load_factors(path)
        rounded = round_task(task, target)
        write_atomically(str(output), rounded.content)
        for row in rows_of(task, rounded):
            table.add_row(*row, end_section=not row[0])
    console.print(table)
    console.print(
        "numbers: of the factors, without the head; error: norm of the increments' difference over "
        "theirs; bound: what the error cannot exceed."
    )
    console.print(f"Wrote {out}.")
