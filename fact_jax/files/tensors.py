"""Files of named arrays: `.npz`, safetensors (also sharded) and PyTorch's zip files.

A file is opened without reading its data: names and shapes come first, an array only when it is
asked for, so that a wrong or hostile file costs neither time nor memory. No pickle is executed.
"""

import os
import re
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import ml_dtypes
import numpy as np

from fact_jax.errors import UserError
from fact_jax.files import guards
from fact_jax.files.guards import DAMAGE, ZipArchive
from fact_jax.files.json_reader import read_json
from fact_jax.files.torch_zip import TorchZip


@runtime_checkable
class TensorFile(Protocol):
    """An opened file (or folder) of named arrays."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """The array, in its stored dtype. Raises UserError when its bytes are damaged."""
        ...

    def close(self) -> None:
        """Closes what is open; arrays can no longer be read."""
        ...


@runtime_checkable
class Tensors(Protocol):
    """Named tensors with safetensors' own names of their types, wherever they lie."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    @property
    def dtypes(self) -> dict[str, str]: ...
    def read(self, name: str) -> np.ndarray: ...


def open_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a file by its content, or a folder or index of a Hugging Face checkpoint.

    Raises UserError when nothing is there, or when it is none of the known formats.
    """
    path = Path(path)
    if os.path.isdir(path):
        return open_tensors(_file_in_folder(path))
    start = guards.read_start("Weights file", path)
    if path.suffix == ".json":
        return ShardedFile(path)
    if start[:2] == b"PK":
        with _open_zip(path) as archive:
            names = archive.namelist()
            npz = any(name.endswith(".npy") for name in names) or not names
        return NpzFile(path) if npz else TorchZip(path)
    if start[8:9] == b"{":  # an 8-byte length, then a JSON header
        return _open_safetensors(path)
    if start[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin"):
        return TorchZip(path)  # says what is wrong with it
    raise UserError(
        f"Weights file {path} ({path.stat().st_size:,} bytes) is not a .npz, safetensors or "
        "PyTorch file, or it is truncated. Download it again, or name another file."
    )


def _file_in_folder(folder: Path) -> Path:
    try:
        every = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Weights folder {folder} cannot be read ({error.strerror}).") from error
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if folder / name in every:
            return folder / name
    files = [path for path in every if path.suffix in (".safetensors", ".npz")]
    if len(files) == 1:
        return files[0]
    names = ", ".join(p.name for p in files) or "none"
    raise UserError(
        f"Weights folder {folder} holds no model.safetensors, model.safetensors.index.json or "
        f"pytorch_model.bin, and not exactly one .safetensors or .npz file (found: {names}). Name "
        "the file itself."
    )


def _open_zip(path: Path) -> ZipArchive:
    try:
        return ZipArchive(path)
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(
        f"Weights file {path} is damaged or truncated ({error}). Download it again, or name "
        "another file."
    )


class NpzFile:
    """NumPy's `.npz`: a zip of `.npy` files."""

    def __init__(self, path: Path):
        self.path, self._archive = path, _open_zip(path)
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            arrays = [name for name in self._archive.namelist() if name.endswith(".npy")]
            guards.check_count(arrays, guards.MAX_ARRAYS)
            for member in arrays:
                with self._archive.open(member) as f:
                    self.shapes[member.removesuffix(".npy")] = self._header(f, member)[0]
        except DAMAGE as error:
            self.close()
            raise _told(path, error) from error

    def _header(self, f: guards.ByteStream, member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
        shape, fortran, dtype = guards.read_npy_header(f)
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
            # The Google files store bfloat16 as raw pairs of bytes.
            dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        except DAMAGE as error:
            raise _told(self.path, error) from error

    def close(self) -> None:
        self._archive.close()


def _told(path: Path, error: Exception) -> UserError:
    return error if isinstance(error, UserError) else _damaged(path, error)


class SafetensorsFile:
    """One safetensors file; `dtypes` are safetensors' own names, such as F32.

    Raises ValueError or OSError if the file is damaged.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            header = guards.read_safetensors_header(path)
            read_json(header, name="its header", allow_surrogates=True)  # no key twice
            self._file: Any = safe_open(path, "numpy")
            names = self._file.keys()
            guards.check_count(names)
            self.metadata: dict[str, str] = self._file.metadata() or {}
            parts = {name: self._file.get_slice(name) for name in names}
            self.shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            self.dtypes = {name: part.get_dtype() for name, part in parts.items()}
        except SafetensorError as error:
            raise ValueError(str(error)) from error

    def read(self, name: str) -> np.ndarray:
        from safetensors import SafetensorError

        try:
            array: np.ndarray = self._file.get_tensor(name)
            return array
        except (TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise UserError(
                f"Weights file {self.path}: tensor {name!r} is stored as {self.dtypes[name]}, "
                "which is not a floating-point type that is read here. Save it as float32, "
                "float16 or bfloat16."
            ) from error

    def close(self) -> None:
        self._file.__exit__(None, None, None)


def _open_safetensors(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path)
    except DAMAGE as error:
        raise _damaged(path, f"as safetensors: {error}") from error


class _Index(TypedDict):
    weight_map: dict[str, str]  # from a tensor to the file that holds it


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
            self._shards[shard] = _open_safetensors(path.parent / shard)
        self._where = {name: self._shards[shard] for name, shard in names.items()}
        for name, file in self._where.items():
            if name not in file.shapes:
                raise UserError(f"{path} says that {file.path.name} holds {name!r}; it does not.")
        self.shapes = {name: file.shapes[name] for name, file in self._where.items()}

    def _index(self) -> dict[str, str]:
        try:
            index: _Index = read_json(self.path, schema=_Index, max_bytes=guards.MAX_INDEX_BYTES)
        except UserError as error:
            raise UserError(
                f"{error} It is not the index of a sharded checkpoint, a JSON file with a "
                "'weight_map' from tensors to files."
            ) from error
        return index["weight_map"]

    def read(self, name: str) -> np.ndarray:
        return self._where[name].read(name)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()
