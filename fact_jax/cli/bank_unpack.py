"""The factor files of a pack, and the dictionaries that they share.

    python -m experiments.bank unpack --pack tasks.pack --out DIR

Writes the files that were packed, byte by byte. Files of the same names are replaced.
"""

import os
from pathlib import Path

from absl import flags

from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.pack import Pack


def define_flags() -> None:
    """Defines --pack and --out."""
    flags.DEFINE_string("pack", "", "The pack, a file of the action `pack`.")
    flags.DEFINE_string("out", "", "Folder to write to; made if it is not there.")


def main() -> None:
    for name in ("pack", "out"):
        if not flags.FLAGS[name].value:
            lines = command("bank", "unpack", "--help")
            raise UserError(f"--{name} is missing. `{lines}` lists all.")
    folder = Path(os.path.expanduser(flags.FLAGS.out))
    with Pack(os.path.expanduser(flags.FLAGS.pack)) as pack:
        names = pack.names
        _check_names(pack.path, names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be made ({error.strerror}).") from error
        for dictionary in pack.dictionaries:
            write_atomically(folder / dictionary.file_name, dictionary.content)
        for name in names:
            write_atomically(folder / f"{name}.safetensors", pack.file(name))
    Console().print(f"Wrote {len(names):,} factor files to {folder}.")


def _check_names(path: Path, names: list[str]) -> None:
    """Raises UserError for a name that would lead out of the folder."""
    for name in names:
        if not name or os.path.basename(name) != name or name in (".", "..") or "\\" in name:
            raise UserError(f"{path}: a task has the name {name[:100]!r}, which is no file's name.")
