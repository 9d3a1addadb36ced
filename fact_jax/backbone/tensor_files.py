"""Files of named arrays: `.npz`, safetensors (also sharded) and PyTorch's zip files.

A file is opened without reading its data: names and shapes come first, an array only when it is
asked for, so that a wrong or hostile file costs neither time nor memory. No pickle is executed.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Protocol

import ml_dtypes
import numpy as np

from fact_jax.backbone.torch_zip import BoundedFile, TorchZip
from fact_jax.errors import UserError

_MAX_INDEX_BYTES = 32 << 20
_MAX_NPY_HEADER_BYTES = 10_000
_MAX_SAFETENSORS_HEADER_BYTES = 8 << 20  # a tensor needs about 100
# What zipfile and its decompressors raise on damaged bytes (RuntimeError: an encrypted member).
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(OSError, ValueError, RuntimeError),
)


class TensorFile(Protocol):
    """An opened file (or folder) of named arrays."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """The array, in its stored dtype. Raises UserError when its bytes are damaged."""
        ...


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a file by its content, or a folder or index of a Hugging Face checkpoint.

    Raises UserError when nothing is there, or when it is none of the known formats.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return open_tensors(_file_in_folder(path))
        if not path.is_file():
            raise UserError(f"Weights file {path} does not exist.")
        with path.open("rb") as f:
            start = f.read(9)
    except OSError as error:
        raise UserError(f"Weights file {path} cannot be read ({error}).") from error
    if path.suffix == ".json":
        return ShardedFile(path)
    if start[:2] == b"PK":
        archive = _open_zip(path)
        npz = any(name.endswith(".npy") for name in archive.namelist())
        return NpzFile(path, archive) if npz else TorchZip(path)
    if start[8:9] == b"{":  # an 8-byte length, then a JSON header
        return SafetensorsFile(path)
    if start[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin"):
        return TorchZip(path)  # says what is wrong with it
    raise UserError(
        f"Weights file {path} ({path.stat().st_size:,} bytes) is not a .npz, safetensors or "
        "PyTorch file, or it is truncated. Download it again, or name another file."
    )


def _file_in_folder(folder: Path) -> Path:
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if (folder / name).exists():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".npz"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.name for p in found) or "none"
    raise UserError(
        f"Weights folder {folder} holds no model.safetensors, model.safetensors.index.json or "
        f"pytorch_model.bin, and not one single .safetensors or .npz file (found: {names}). Name "
        "the file itself."
    )


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        file = BoundedFile(io.FileIO(path))
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    file.limit = path.stat().st_size
    return archive


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(
        f"Weights file {path} is damaged or truncated ({error}). Download it again, or name "
        "another file."
    )


def read_npy_header(f: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a `.npy` file, whose data follow in `f`.

    NumPy's own reader of version 2 takes any length on trust. Raises ValueError, and nothing else,
    for what is not a short and sound header.
    """
    version = np.lib.format.read_magic(f)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(stated := f.read(width), "little")
    if len(stated) < width or length > _MAX_NPY_HEADER_BYTES:
        raise ValueError(f"a .npy header of {length:,} bytes")
    header = io.BytesIO(length.to_bytes(2, "little") + f.read(length))
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    except (SyntaxError, tokenize.TokenError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"a damaged .npy header ({type(error).__name__})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("a .npy header that is nested too deeply") from error
    if not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError("a .npy header with an impossible shape")
    return shape, fortran, dtype


class NpzFile:
    """NumPy's `.npz`: a zip of `.npy` files."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self._archive = path, archive
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as f:
                        self.shapes[member.removesuffix(".npy")] = self._header(f, member)[0]
        except _DAMAGE as error:
            raise _told(path, error) from error

    def _header(self, f: IO[bytes], member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
        shape, fortran, dtype = read_npy_header(f)
        if dtype.hasobject:
            raise UserError(
                f"Weights file {self.path}: array {member!r} holds pickled Python objects, which "
                "are never loaded. Save plain numeric arrays."
            )
        if dtype.kind not in "fiu" and dtype != np.dtype("V2"):
            raise UserError(
                f"Weights file {self.path}: array {member!r} is of type {dtype}; expected "
                "floating-point numbers."
            )
        return shape, fortran, dtype

    def read(self, name: str) -> np.ndarray:
        member = name + ".npy"
        try:
            with self._archive.open(member) as f:
                shape, fortran, dtype = self._header(f, member)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                data = f.read(size)
                if len(data) != size or f.read(1):  # reading past the end checks the checksum
                    raise ValueError(f"{member} has not the size that its header states")
        except _DAMAGE as error:
            raise _told(self.path, error) from error
        # The Google files store bfloat16 as raw pairs of bytes.
        dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _told(path: Path, error: Exception) -> UserError:
    return error if isinstance(error, UserError) else _damaged(path, error)


class SafetensorsFile:
    """One safetensors file."""

    def __init__(self, path: Path):
        self.path = path
        self._file = _open_safetensors(path)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.shapes = {
            name: tuple(self._file.get_slice(name).get_shape())
            for name in self._file.keys()  # noqa: SIM118
        }

    def read(self, name: str) -> np.ndarray:
        from safetensors import SafetensorError

        try:
            return self._file.get_tensor(name)
        except (TypeError, ValueError, AttributeError, SafetensorError) as error:
            dtype = self._file.get_slice(name).get_dtype()
            raise UserError(
                f"Weights file {self.path}: tensor {name!r} is stored as {dtype}, which is not a "
                "floating-point type that is read here. Save it as float32, float16 or bfloat16."
            ) from error


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as f:
        header = int.from_bytes(f.read(8), "little")
    if header > min(_MAX_SAFETENSORS_HEADER_BYTES, path.stat().st_size):
        raise _damaged(path, f"as safetensors: a header of {header:,} bytes")
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"as safetensors: {error}") from error


class ShardedFile:
    """A `model.safetensors.index.json` and the shards beside it."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        names = self._index()
        self._shards: dict[str, SafetensorsFile] = {}
        for shard in sorted(set(names.values())):
            if not re.fullmatch(r"[\w.\-]+\.safetensors", shard):
                raise UserError(
                    f"{path} names the shard {shard!r}; expected a .safetensors file beside it."
                )
            if not (path.parent / shard).is_file():
                raise UserError(
                    f"{path} names the shard {shard}, which is not beside it. Download all shards."
                )
            self._shards[shard] = SafetensorsFile(path.parent / shard)
        self._where = {name: self._shards[shard] for name, shard in names.items()}
        for name, file in self._where.items():
            if name not in file.shapes:
                raise UserError(f"{path} says that {file.path.name} holds {name!r}; it does not.")
        self.shapes = {name: file.shapes[name] for name, file in self._where.items()}

    def _index(self) -> dict[str, str]:
        size = self.path.stat().st_size
        try:
            if size > _MAX_INDEX_BYTES:
                raise ValueError(f"{size:,} bytes")
            names = json.loads(self.path.read_bytes())["weight_map"]
            if not all(isinstance(value, str) for value in names.values()):
                raise TypeError("a shard's name is not a string")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self.path} is not the index of a sharded checkpoint, a JSON file with a "
                f"'weight_map' ({type(error).__name__}: {error})."
            ) from error
        return names

    def read(self, name: str) -> np.ndarray:
        return self._where[name].read(name)
