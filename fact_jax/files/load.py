"""`load_factors`: a trained task from any kind of factor file, or from a PEFT adapter."""

import os
from pathlib import Path

from fact_jax.errors import UserError
from fact_jax.files.download import find_task
from fact_jax.files.factors import TrainedTask, read_factors
from fact_jax.files.guards import read_start
from fact_jax.files.peft import is_adapter, read_peft
from fact_jax.files.reference import read_reference

TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def load_factors(
    path: str | os.PathLike[str], method: str | None = None, scale: float | None = None
) -> TrainedTask:
    """Reads a factor file, or an adapter of Hugging Face's PEFT.

    A file is one of ours, or a `.pt` of the released PyTorch code. Names, shapes and dtypes are
    checked before the numbers are read, and nothing is executed.

    Args:
      path: the file; the folder of a PEFT adapter, or one with a single factor file; or
        ``hf:owner/name`` for a repository of the Hugging Face hub with one of both.
      method: for a `.pt` only: "tt" or "tk"; None reads it from the names of its tensors.
      scale: for a `.pt` only, which does not say the scale that it was trained with.

    Raises:
      UserError: the file is missing, damaged or something else, or the arguments do not belong to
        its kind.
    """
    path = find_task(path)
    if os.path.isdir(path):
        if is_adapter(path):
            _check_unused(path, method, scale)
            return read_peft(path)
        path = _only_file(path)
    if read_start("Factor file", path).startswith(b"PK") or path.suffix in TORCH_SUFFIXES:
        return read_reference(path, method, scale)
    _check_unused(path, method, scale)
    return read_factors(path)


def _check_unused(path: Path, method: str | None, scale: float | None) -> None:
    if method is not None or scale is not None:
        raise UserError(
            f"{path} is no PyTorch file: it says its method and scale itself. Leave out --method "
            "and --scale."
        )


def _only_file(folder: Path) -> Path:
    """The single factor file of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(
            f"{folder} is a folder of {len(files)} factor files; give one of its factor files, or "
            "the folder of a PEFT adapter."
        )
    return files[0]
