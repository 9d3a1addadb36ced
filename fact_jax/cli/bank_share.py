"""A dictionary of tasks that are trained already, and their factor files written anew with it.

    python -m experiments.bank share --factors DIR --out DIR2 --rank 32
    python -m experiments.bank share --factors DIR --out DIR2 --rank 32 --method fact_tk --bits 4/1

Takes all factor files of the folder whose changes are low-rank increments; others are left out.
FacT-TT's U and V, or FacT-TK's U, C and V, become one dictionary, a file in DIR2. A task's file has
its cores and its head alone. `config.shared` trains new tasks with the same dictionary.
"""

import os
from pathlib import Path

from absl import flags
from rich.table import Table

from fact_jax.algebra.increments import Increments
from fact_jax.backbone.config import ViTConfig
from fact_jax.cli.bank_pack import factor_files
from fact_jax.cli.round import bits_of
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask
from fact_jax.files.load import load_factors
from fact_jax.ranges import SIZE, check
from fact_jax.serving.outputs import prepare_output
from fact_jax.serving.sharing import share_tasks
from fact_jax.text import printable_line
from fact_jax.tuning import METHODS

SHARING = ("fact_tt", "fact_tk")  # what `algebra.share` makes


def define_flags() -> None:
    """Defines --factors, --out, --rank, --method and --bits."""
    flags.DEFINE_string("factors", "", "Folder of factor files.")
    flags.DEFINE_string("out", "", "Folder to write to; made if it is not there.")
    flags.DEFINE_integer("rank", None, "The rank of the dictionary.")
    flags.DEFINE_enum("method", "fact_tt", SHARING, "The method of dictionary and tasks.")
    flags.DEFINE_string("bits", "", "Bits a number of factors/head, 1 to 16, such as 4/1.")


def read_tasks(files: list[Path], console: Console) -> list[TrainedTask]:
    """The tasks whose changes are increments; others get a line."""
    tasks = []
    for path in files:
        task = load_factors(path)
        try:
            config = ViTConfig(**task.metadata["vit"])
            if not Increments.of(task.method, task.factors, config).norm:
                raise UserError("its increments are all zero.")
        except UserError as error:
            console.print(f"Left out: {printable_line(path.name)}: {error}")
            continue
        tasks.append(task)
    if not tasks:
        raise UserError("No factor file of the folder has low-rank increments; see above.")
    return tasks


def main() -> None:
    options, console = flags.FLAGS, Console()
    folder = Path(os.path.expanduser(options.out))
    if not options.out or options.rank is None:
        missing = "rank" if options.out else "out"
        raise UserError(f"--{missing} is missing.")
    check("--rank", options.rank, SIZE)
    bits, files = bits_of(options.bits), factor_files(options.factors)
    if folder.exists() and folder.resolve() == files[0].parent.resolve():
        raise UserError(f"--out {folder} is the folder of --factors; give another one.")
    prepare_output(str(folder / files[0].name))
    tasks = read_tasks(files, console)
    dictionary, shared = share_tasks(tasks, METHODS[options.method](rank=options.rank), bits)
    write_atomically(folder / dictionary.file_name, dictionary.content)
    table = Table("file", "bytes before", "bytes", "error")
    for column in table.columns[1:]:
        column.justify = "right"
    for task, one in zip(tasks, shared, strict=True):
        write_atomically(folder / task.path.name, one.content)
        sizes = [f"{size:,}" for size in (task.path.stat().st_size, len(one.content))]
        table.add_row(printable_line(task.path.name), *sizes, f"{one.rounded.error:.3g}")
    console.print(table)
    console.print(
        f"Wrote {len(shared):,} tasks and their dictionary to {folder}. The dictionary, "
        f"{dictionary.file_name}, has {len(dictionary.content):,} bytes; error: norm of the "
        "increments' difference over theirs."
    )
