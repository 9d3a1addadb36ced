"""Guards against hostile files: the limits of weight and factor files, which their readers call.

Threat model. Somebody downloads a weight or factor file and loads it on a machine that matters.
The file's author may write any bytes.
1. No code of the file runs: pickles are interpreted (torch_pickle.py), and nothing is unpickled.
2. A refusal takes under two seconds and 500 MB, however large the file says that it is.
3. Names and shapes are read first, and numbers only where the model needs an array of that shape,
   so that memory is bounded by the model.
4. Nothing is written, and nothing outside the named file, its folder's shards and its config.json
   is opened. Names inside of an archive are keys; no member is ever extracted.
5. Every refusal is a `UserError` with the file's name. The functions here raise `ValueError` (or
   zipfile's `BadZipFile`) with the reason; a reader catches `DAMAGE` and adds the name.
Not covered: wrong numbers of the right shape, a file that changes while it is read, and faults in
zlib, NumPy or safetensors themselves.
"""

import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from etils import epath

from fact_jax.errors import UserError

# Formats. The needs in comments are those of a ViT-H with its optimiser's state.
MAX_TENSORS = 20_000  # 1,600
MAX_ARRAYS = 5_000  # of a .npz file, each with a header of its own: 520
MAX_ZIP_DIRECTORY_BYTES = 4 << 20  # its entries take ten times as much in memory
MAX_NPY_HEADER_BYTES = 1_000  # NumPy writes 118
MAX_SAFETENSORS_HEADER_BYTES = 8 << 20  # a tensor needs about 100
MAX_INDEX_BYTES = 32 << 20  # of a sharded checkpoint
MAX_CONFIG_BYTES = 1 << 20  # of a model's config.json
MAX_PICKLE_BYTES = 16 << 20  # 300,000
MAX_OPCODES = 1_000_000  # 60,000
MAX_CONTAINER_DEPTH = 16  # nested dicts and lists of a PyTorch file
MAX_NAME = 500  # characters of a tensor's name
MAX_DIMENSIONS = 16
MAX_SIZE = 2**48  # of one axis, stride or offset: its products with an item's size fit 64 bits

# Metadata of factor files.
MAX_METADATA = 4_000_000  # characters; 20,000 class names are half a million
MAX_CLASS_NAME = 1_000  # characters
MAX_PATCHES = 6_000  # of an image; DINOv2's largest are 1,022 pixels, 5,329 patches

ByteStream = IO[bytes] | io.BufferedIOBase  # the latter is what zipfile gives

# Exceptions of the standard library, NumPy and safetensors on damaged bytes. NotImplementedError
# and RecursionError are RuntimeErrors, OverflowError is an ArithmeticError.
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(RuntimeError, ArithmeticError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
)


def absence(path: Path) -> str:
    """The reason why a path is no file that can be read, as the end of a sentence."""
    return "is a FIFO, a socket or a device" if path.exists() else "does not exist"


def read_start(what: str, path: Path) -> bytes:
    """The first bytes of a file; UserError, which calls it `what`, if there is none to be read."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{what} {path} {absence(path)}.")
        with path.open("rb") as file:
            return file.read(20)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist.") from error
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {path} cannot be read ({reason}).") from error


class _BoundedFile(io.BufferedReader):
    """A file that gives no more than `limit` bytes at once: zipfile reads a directory whole."""

    limit = MAX_ZIP_DIRECTORY_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has more than {self.limit:,} bytes")
        return super().read(size)


class ZipArchive(zipfile.ZipFile):
    """A zip archive whose directory is bounded and sound; it owns its file and closes it.

    Raises BadZipFile for members that are neither stored nor deflated (the decompressors of bzip2
    and LZMA have no bound on what they give at once), encrypted, of equal names, or that share
    bytes: such a directory makes gigabytes of a small file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._bounded = _BoundedFile(io.FileIO(path))
        try:
            super().__init__(self._bounded)
            _check_members(self.infolist(), self.start_dir)
        except BaseException:
            self.close()
            raise
        self._bounded.limit = os.fstat(self._bounded.fileno()).st_size

    def close(self) -> None:
        """Closes the archive and its file."""
        super().close()
        self._bounded.close()


def _check_members(members: Iterable[zipfile.ZipInfo], directory: int) -> None:
    names, end = set(), 0
    for member in sorted(members, key=lambda info: info.header_offset):
        name = ascii(member.filename)[:100]
        if member.filename in names:
            raise zipfile.BadZipFile(f"two members are named {name}")
        names.add(member.filename)
        if member.flag_bits & 1:
            raise zipfile.BadZipFile(f"member {name} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = {12: "bzip2", 14: "LZMA"}.get(member.compress_type, member.compress_type)
            raise zipfile.BadZipFile(
                f"member {name} is compressed by {method}, expected deflate or none"
            )
        if member.header_offset < end:
            raise zipfile.BadZipFile(f"member {name} shares bytes with another")
        end = member.header_offset + 30 + len(member.orig_filename) + member.compress_size
    if end > directory:
        raise zipfile.BadZipFile("a member reaches into the directory")


def read_npy_header(f: ByteStream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of a `.npy` file, whose data follow in `f`.

    NumPy's own reader of version 2 takes any length on trust. Raises ValueError, and nothing else,
    for what is not a short and sound header.
    """
    version = np.lib.format.read_magic(f)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(stated := f.read(width), "little")
    if len(stated) < width or length > MAX_NPY_HEADER_BYTES:
        raise ValueError(f"a .npy header of {length:,} bytes")
    header = io.BytesIO(length.to_bytes(2, "little") + f.read(length))
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    except (SyntaxError, tokenize.TokenError, TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"a damaged .npy header ({type(error).__name__})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("a .npy header that is nested too deeply") from error
    if not all(type(n) is int and 0 <= n < MAX_SIZE for n in shape):
        raise ValueError("a .npy header with an impossible shape")
    return shape, fortran, dtype


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file that can be read to its end, also behind a link or in a bucket.

    The `is_file` of etils takes FIFOs for files, too, and to open one waits for ever.
    """
    bucket = "://" in os.fspath(path)
    return epath.Path(path).is_file() if bucket else os.path.isfile(path)


def read_safetensors_header(path: Path) -> bytes:
    """The JSON header; ValueError if the file states one of more bytes than any model needs."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_SAFETENSORS_HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"a header of {length:,} bytes")
        return file.read(length)


def check_count(names: Iterable[str], limit: int = MAX_TENSORS) -> None:
    """Raises ValueError for more tensors than any model has."""
    if (count := len(list(names))) > limit:
        raise ValueError(f"{count:,} tensors, expected at most {limit:,}")


def check_view(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], numel: int) -> None:
    """Raises ValueError if a strided tensor does not lie within its storage of `numel` items.

    A tensor has at most as many items as its storage: a stride of 0 could make any number of one.
    """
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= numel or math.prod(shape) > numel):
        raise ValueError(
            f"of shape {shape}, strides {strides} and offset {offset}, which does not fit its "
            f"storage of {numel:,} elements"
        )


def are_sizes(numbers: object) -> bool:
    """Whether this is a short tuple of whole numbers that an array's axes can have."""
    return (
        type(numbers) is tuple
        and len(numbers) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < MAX_SIZE for n in numbers)
    )
