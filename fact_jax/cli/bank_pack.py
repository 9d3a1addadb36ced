"""The factor files of many tasks in one file.

    python -m experiments.bank pack --factors DIR --out tasks.pack

Takes every factor file of the folder, and the dictionaries that they share. What all tasks have in
common is written once. `fact_jax.load_pack` reads the file, and the action `unpack` gives the
factor files back as they were.
"""

import os
from pathlib import Path

from absl import flags

from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.pack import SUFFIX, pack_files
from fact_jax.serving.outputs import prepare_output
from fact_jax.text import count_of


def define_flags() -> None:
    """Defines --factors and --out."""
    flags.DEFINE_string("factors", "", "Folder of factor files.")
    flags.DEFINE_string("out", "", f"The file to write, {SUFFIX}.")


def factor_files(folder: str) -> list[Path]:
    """The factor files of a folder. Raises UserError if there are none."""
    if not folder:
        raise UserError(f"--factors is missing. `{command('bank', 'pack', '--help')}` lists all.")
    path = Path(os.path.expanduser(folder))
    if not path.is_dir():
        raise UserError(f"--factors {path} is no folder; give one that holds factor files.")
    if not (files := sorted(path.glob("*.safetensors"))):
        raise UserError(f"--factors {path} holds no factor file, no *.safetensors.")
    return files


def main() -> None:
    out = os.path.expanduser(flags.FLAGS.out)
    if Path(out).suffix != SUFFIX:
        raise UserError(f"--out is {out!r}; expected a name that ends in {SUFFIX}.")
    files = factor_files(flags.FLAGS.factors)
    prepare_output(out)
    content = pack_files(files)
    write_atomically(out, content)
    before = sum(path.stat().st_size for path in files)
    Console().print(
        f"Wrote {out}: {count_of(len(files), 'task')} in {len(content):,} bytes, "
        f"{len(content) // len(files):,} a task; their files have {before:,}."
    )
