"""`load_factors`: a trained task from any kind of factor file."""

import os
from pathlib import Path

from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask, read_factors
from fact_jax.files.guards import read_start
from fact_jax.files.reference import read_reference

TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def load_factors(
    path: str | os.PathLike[str], method: str | None = None, scale: float | None = None
) -> TrainedTask:
    """Reads a factor file: one of ours, or a `.pt` of the released PyTorch code.

    Names, shapes and dtypes are checked before the numbers are read, and nothing is executed.

    Args:
      path: the file.
      method: for a `.pt` only: "tt" or "tk"; None reads it from the names of its tensors.
      scale: for a `.pt` only, which does not say the scale that it was trained with.

    Raises:
      UserError: the file is missing, damaged or something else, or the arguments do not belong to
        its kind.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give one of its factor files.")
    if read_start("Factor file", path).startswith(b"PK") or path.suffix in TORCH_SUFFIXES:
        return read_reference(path, method, scale)
    if method is not None or scale is not None:
        raise UserError(
            f"{path} is no PyTorch file: it says its method and scale itself. Leave out --method "
            "and --scale."
        )
    return read_factors(path)
