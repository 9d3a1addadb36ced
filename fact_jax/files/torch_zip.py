"""PyTorch's zip files (`torch.save` since 1.6), without PyTorch and without unpickling.

Such a file is a zip archive of raw storages (`data/0`, `data/1`, ...) and a pickle program,
`data.pkl`, that says how tensors are cut out of them (torch_pickle.py).
"""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.guards import DAMAGE, MAX_PICKLE_BYTES, ZipArchive, check_view
from fact_jax.files.torch_pickle import (
    ORDERED_DICT,
    STORAGES,
    TENSOR,
    Refused,
    Tensor,
    run,
    tensors,
)

_LEGACY_START = b"\x80\x02\x8a\x0a" + pickle.encode_long(0x1950A86A20F9469CFC6C)


class TorchZip:
    """The tensors of a PyTorch zip file: plain or nested dicts of tensors, names joined by '.'.

    Attributes:
      path: the file.
      shapes: shape of every tensor by name, known without reading any data.
      metadata: empty; these files have none.

    Raises UserError, also in `read`, for a file that is damaged, of another format, compressed, or
    that holds anything but tensors, numbers and texts.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._last: tuple[str | None, bytes] = (None, b"")
        try:
            with self.path.open("rb") as file:
                self._check_start(file.read(len(_LEGACY_START)))
            self._zip = ZipArchive(self.path)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"File {self.path} cannot be read ({error}).") from error
        except DAMAGE as error:
            raise self._broken(str(error)) from error
        try:
            self._read_program()
        except BaseException:
            self.close()
            raise

    def _read_program(self) -> None:
        programs = [n for n in self._zip.namelist() if f"/{n}".endswith("/data.pkl")]
        if len(programs) != 1:
            raise UserError(
                f"File {self.path} is a zip file, but not one of torch.save: it holds "
                f"{len(programs)} members named data.pkl, expected 1."
                + " If it is a .npz file, give it that suffix."
                * (self.path.suffix != ".npz")
            )
        self._prefix = programs[0].removesuffix("data.pkl")
        if f"{self._prefix}constants.pkl" in self._zip.NameToInfo:
            raise UserError(
                f"File {self.path} is a TorchScript program, not a file of tensors. "
                + self._advice(f'torch.jit.load({str(self.path.name)!r}, map_location="cpu")')
            )
        program = self._member("data.pkl", limit=MAX_PICKLE_BYTES)
        self._byte_order = self._read_byte_order()
        try:
            self._tensors = dict(tensors(run(program)))
            for name, tensor in self._tensors.items():
                self._check(name, tensor)
        except Refused as error:
            raise UserError(
                f"File {self.path} {error}. None of it was executed. {self._advice()}"
            ) from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """The tensor's values, contiguous, in the stored dtype and the machine's byte order."""
        storage, offset, shape, strides = self._tensors[name]
        if self._last[0] != storage.key:  # many tensors may be views of one storage
            self._last = (storage.key, self._member(f"data/{storage.key}"))
        data = self._last[1]
        stored = storage.dtype.newbyteorder(self._byte_order)
        flat = np.frombuffer(data, stored)[offset:]
        if 0 in shape:
            return np.empty(shape, storage.dtype)
        steps = [stride * stored.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        return np.array(view, storage.dtype, order="C")

    def _read_byte_order(self) -> Any:
        """NumPy's sign for the byte order of the storages."""
        if f"{self._prefix}byteorder" not in self._zip.NameToInfo:
            return "<"
        stated = self._member("byteorder", limit=100)
        if stated not in (b"little", b"big"):
            raise UserError(
                f"File {self.path} says that its byte order is {ascii(stated)[1:60]}; expected "
                "'little' or 'big'. Fetch or make it again."
            )
        return ">" if stated == b"big" else "<"

    def _advice(self, load: str = "") -> str:
        """A line of PyTorch that turns a file that we do not read into one that we do."""
        path = repr(str(self.path.name))
        load = load or f'torch.load({path}, map_location="cpu", weights_only=False)'
        then = (
            'd = d.state_dict() if hasattr(d, "state_dict") else next((d[k] for k in ("model", '
            '"state_dict", "teacher") if k in d), d); '
        )
        return (
            "If you trust the file, which may run code then, write its tensors to a new one in "
            f"PyTorch and give that: import torch; d = {load}; {then}"
            'torch.save({k: v for k, v in d.items() if torch.is_tensor(v)}, "new.pt")'
        )

    def _check_start(self, start: bytes) -> None:
        if start.startswith(b"PK"):
            return
        load = ""
        if start == _LEGACY_START:
            kind = "was saved in PyTorch's format before 1.6, which is a series of pickles"
        elif start.startswith(b"\x80"):
            kind = "is a bare pickle"
            load = f'__import__("pickle").load(open({str(self.path.name)!r}, "rb"))'
        else:
            raise self._broken("it does not begin as a zip file does")
        raise UserError(
            f"File {self.path} {kind}; only zip files of torch.save are read. {self._advice(load)}"
        )

    def _broken(self, reason: str) -> UserError:
        return UserError(
            f"File {self.path} is no sound file of torch.save ({reason}): it is truncated, damaged "
            "or of another format. Fetch or make it again."
        )

    def _member(self, name: str, limit: int | None = None) -> bytes:
        """A member's bytes, their checksum verified; never more than the file holds."""
        info = self._zip.getinfo(self._prefix + name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UserError(
                f"File {self.path}: member {name} is compressed, which torch.save never does. "
                + self._advice()
            )
        if limit is not None and info.file_size > limit:
            raise UserError(
                f"File {self.path}: member {name} has {info.file_size:,} bytes, more than the "
                f"{limit:,} that a file of tensors needs. Save a dict of tensors only."
            )
        try:
            return self._zip.read(info)
        except DAMAGE as error:
            raise self._broken(str(error)) from error

    def _check(self, name: str, tensor: Tensor) -> None:
        """Raises UserError if the tensor's storage is missing, of another size or too small."""
        storage, offset, shape, strides = tensor
        info = self._zip.NameToInfo.get(f"{self._prefix}data/{storage.key}")
        size = None if info is None else info.file_size
        if size != storage.numel * storage.dtype.itemsize:
            raise self._broken(
                f"the storage of {name!r} should have {storage.numel * storage.dtype.itemsize:,} "
                f"bytes, but has {'none' if size is None else format(size, ',')}"
            )
        try:
            check_view(offset, shape, strides, storage.numel)
        except ValueError as error:
            raise Refused(f"holds a tensor {name!r} {error}") from error

    def close(self) -> None:
        """Closes the file; its tensors can no longer be read."""
        self._last = (None, b"")
        self._zip.close()


def torch_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file that ``torch.load(path, weights_only=True)`` reads as a dict of contiguous tensors.

    Equal tensors give equal bytes. Raises TypeError for a dtype that is not in the list above.
    """
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    program, buffer = [pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK], io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def write(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)  # stored, dated 1980

        contiguous = [np.asarray(a, order="C") for a in arrays.values()]
        for i, (name, array) in enumerate(zip(arrays, contiguous, strict=True)):
            if array.dtype not in kinds:
                raise TypeError(f"Tensor {name!r} is {array.dtype}, which PyTorch does not have.")
            strides = [s // array.itemsize for s in array.strides]
            storage = [_text("storage"), _name(kinds[array.dtype]), _text(str(i)), _text("cpu")]
            arguments = [
                _tuple(*storage, _int(array.size)) + pickle.BINPERSID,
                _int(0),
                _tuple(*map(_int, array.shape)),
                _tuple(*map(_int, strides)),
                pickle.NEWFALSE,
                _name(ORDERED_DICT) + pickle.EMPTY_TUPLE + pickle.REDUCE,  # hooks
            ]
            program += [_text(name), _name(TENSOR), _tuple(*arguments), pickle.REDUCE]
        program.append(pickle.SETITEMS + pickle.STOP)
        write("data.pkl", b"".join(program))
        write("byteorder", b"little")
        for i, array in enumerate(contiguous):
            write(f"data/{i}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        write("version", b"3\n")
    return buffer.getvalue()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    data = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(data)]) + data


def _name(name: str) -> bytes:
    return pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n"


def _tuple(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE
