"""A trained task in fewer numbers, or in another method's form, without training.

    python -m experiments.round --factors F.safetensors --out G.safetensors --rank 8
    python -m experiments.round --factors F.safetensors --out G.safetensors --error 0.1
    python -m experiments.round --factors FOLDER --out FOLDER --bytes 20000
    python -m experiments.round --factors F.safetensors --out G.safetensors --rank 8 \\
        --images FOLDER [--variant vit_b16] [--weights PATH]
    python -m experiments.round --factors LORA.safetensors --out G.safetensors --method fact_tt
    python -m experiments.round --factors DIR/factors/F.safetensors --out G.safetensors \\
        --bits 4/1 --finish_epochs 3

Takes every task whose changes are low-rank increments: FacT, LoRA and their combinations. All
factor files of a folder are rounded. Without --rank, --error and --bytes the rank stays. With
--images, some pictures without labels, FacT-TT is rounded so that it does to them what it did;
--error is then that of what the layers put out. --bits 4/1 writes 4 bits a number of the factors
and 1 of the head, of any method if nothing else is asked for. --finish_epochs trains on the task
what was rounded, with the settings of the sweep in whose work directory DIR it lies.
"""

import functools
import os
from pathlib import Path
from typing import Any

from absl import flags
from rich.table import Table

from fact_jax.algebra.quantise import Bits
from fact_jax.algebra.rounding import NAMES
from fact_jax.backbone.vit import ViT
from fact_jax.cli import arguments
from fact_jax.cli.finish import Origin, finish
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask, check_fits
from fact_jax.files.load import load_factors
from fact_jax.files.peft import is_adapter
from fact_jax.files.weights import checksum, load_vit
from fact_jax.ranges import SIZE, Range, Real, Whole, check
from fact_jax.serving.inputs import find_pictures
from fact_jax.serving.outputs import check_not_input, prepare_output
from fact_jax.serving.rounding import Inputs, RoundedTask, Target, round_task
from fact_jax.text import count_of, printable_line
from fact_jax.tuning.method import Base, count_parameters
from fact_jax.tuning.registry import describe

SUFFIX = ".safetensors"
TARGETS: dict[str, Range] = {"rank": SIZE, "error": Real(0, 1), "bytes": Whole(1)}


def define_flags() -> None:
    """Defines --factors, --out and the targets."""
    flags.DEFINE_string("factors", "", "Factor file or PEFT adapter, or a folder of factor files.")
    flags.DEFINE_string("out", "", "The file to write, .safetensors; for a folder, a folder.")
    flags.DEFINE_integer("rank", None, "The rank to round to.")
    flags.DEFINE_float("error", None, "Most relative error; takes the smallest rank.")
    flags.DEFINE_integer("bytes", None, "Most bytes of a factor file; takes the largest rank.")
    flags.DEFINE_string("images", "", "Pictures without labels that the rounding goes by.")
    flags.DEFINE_string("variant", None, "With --images: the ViT; by default the factor file's.")
    flags.DEFINE_string("weights", None, "With --images: its weights; by default the published.")
    flags.DEFINE_string("bits", "", "Bits a number of factors/head, 1 to 16, such as 4/1.")
    flags.DEFINE_integer("finish_epochs", 0, "Epochs of training after rounding.")
    flags.DEFINE_enum("method", None, NAMES, "Method to convert to; by default the task's own.")


def target_of(options: flags.FlagValues) -> Target:
    """The target that the flags ask for."""
    given = {name: options[name].value for name in TARGETS if options[name].value is not None}
    if len(given) > 1:
        raise UserError(f"--{' and --'.join(given)} are given; give one of them.")
    for name, value in given.items():
        check(f"--{name}", value, TARGETS[name])
    return Target(options.method, **given, bits=bits_of(options.bits))


def bits_of(text: str) -> Bits | None:
    """The bits that --bits asks for."""
    if not text:
        return None
    numbers = text.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(f"--bits is {text!r}; expected two numbers such as 4/1: factors/head.")
    bits = Bits(*map(int, numbers))
    bits.check()
    return bits


def files_of(factors: str, out: str) -> dict[Path, Path]:
    """Output by input file, for a file or for all factor files of a folder."""
    if not factors or not out:
        missing = "factors" if not factors else "out"
        raise UserError(f"--{missing} is missing. `{command('round', '--help')}` lists all.")
    arguments.refuse_torch(Path(factors))
    if not os.path.isdir(factors) or is_adapter(Path(factors)):
        if Path(out).suffix != SUFFIX:
            raise UserError(f"--out {out!r} must end in {SUFFIX}.")
        return {Path(factors): Path(out)}
    if not (inputs := sorted(Path(factors).glob(f"*{SUFFIX}"))):
        raise UserError(f"--factors {factors} holds no factor file, no *{SUFFIX}.")
    if Path(out).suffix == SUFFIX or os.path.isfile(out):
        raise UserError(f"--factors {factors} is a folder; --out {out} must be a folder, too.")
    return {path: Path(out) / path.name for path in inputs}


def inputs_of(options: flags.FlagValues) -> Inputs | None:
    """The pictures to go by, if there are any."""
    if not options.images:
        return None
    images = Path(os.path.expanduser(options.images))
    if not images.exists():
        raise UserError(f"--images {images} does not exist.")

    @functools.cache
    def network(variant: str, *forward: tuple[str, Any]) -> tuple[ViT, Base, str]:
        model, base = load_vit(variant, options.weights, **dict(forward))
        return model, base, checksum(base)

    def load(task: TrainedTask) -> tuple[ViT, Base]:
        variant = arguments.variant_of(task, options.variant)
        model, base, digest = network(variant, *task.forward_settings.items())
        check_fits(task, model.config, digest)
        return model, base

    return Inputs(load, find_pictures(images))


def rows_of(task: TrainedTask, rounded: RoundedTask) -> list[list[str]]:
    """A row each for the task before and after."""
    result = rounded.rounded
    bound = "-" if result.bound is None else f"{result.bound:.3g}"
    before = [printable_line(task.path.name), *_method(task.method), "", ""]
    error = f"{result.error:.3g}"
    if result.weighted_error is not None:
        error += f" ({result.weighted_error:.3g})"
    after = ["", *_method(result.method), error, bound]
    sizes = (task.factors, _size(task.path)), (result.factors, len(rounded.content))
    for row, (factors, size) in zip((before, after), sizes, strict=True):
        row[3:3] = [f"{count_parameters(factors):,}", f"{size:,}"]
    return [before, after]


def _size(path: Path) -> int:
    """Bytes of a factor file, or of an adapter's folder."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _method(method: object) -> tuple[str, str]:
    return describe(method)[0], str(getattr(method, "rank", "-"))  # type: ignore[arg-type]


def round_files(
    files: dict[Path, Path], target: Target, inputs: Inputs | None, console: Console
) -> dict[Path, Path]:
    """Rounds each file and prints a table. Of several files, those that cannot be are left out.

    Returns the files that were rounded.
    """
    table = Table("file", "method", "rank", "numbers", "bytes", "error", "bound")
    for column in table.columns[2:]:
        column.justify = "right"
    done = {}
    for path, output in files.items():
        try:
            task = load_factors(path)
            rounded = round_task(task, target, inputs)
        except UserError as error:
            if len(files) == 1:
                raise
            console.print(f"Left out: {error}")
            continue
        write_atomically(str(output), rounded.content)
        done[path] = output
        for row in rows_of(task, rounded):
            table.add_row(*row, end_section=not row[0])
    if not done:
        raise UserError("No factor file of the folder can be rounded like that; see above.")
    console.print(table)
    return done


def main() -> None:
    console = Console()
    options = flags.FLAGS
    factors, out = (os.path.expanduser(path) for path in (options.factors, options.out))
    target, files = target_of(options), files_of(factors, out)
    inputs = inputs_of(options)
    check("--finish_epochs", options.finish_epochs, Whole(0))
    for path, output in files.items():
        if options.finish_epochs:
            Origin.of(path)
        check_not_input(str(output), factors=str(path))
        prepare_output(str(output))
    files = round_files(files, target, inputs, console)
    also = ", in brackets the same of what the layers put out" if inputs else ""
    what = "numbers" if target.bits and target.only_bits else "increments"
    console.print(
        f"numbers: of the factors, without the head; error: norm of the {what}' difference over "
        f"theirs{also}; bound: what the error cannot exceed."
    )
    if inputs and inputs.unreadable:
        console.print(f"{count_of(len(inputs.unreadable), 'picture')} left out:")
        for path, reason in sorted(inputs.unreadable.items()):
            console.print(f"  {printable_line(str(path))}: {reason}")
    for path, output in files.items() if options.finish_epochs else ():
        finish(path, output, options.finish_epochs, target.bits, console)
    console.print(f"Wrote {out}.")
