"""Mutations of files: bytes, JSON, zip archives and pickle programs.

Every function takes a `random.Random` first, so that a case is made again from its seed.
"""

import copy
import io
import json
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

# What readers of JSON and of headers trip over.
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 95, 4096, 2**31, 2**63, 2**70, -(2**63), 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "x" * 5000, "\0", "\ud800", "\x1b[31m", "\u202e", "../x", "=1+1", "NaN", "1", "²"),
    *([], {}, [[]], [1], {"": 0}, [[1, 2], [3]], ["a"] * 3, {"a": {"b": 1}}),
)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 1000, 10**9)
_OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]


def some_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four edits of bytes anywhere: flips, cuts, insertions, copies."""
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), min(int(rng.expovariate(0.1)) + 1, 200)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif kind == 2:
            data = data[:at] + rng.choice(b"\0\x01\x7f\x80\xff").to_bytes() * size + data[at:]
        elif kind == 3:
            data = data[:at] + data[at + size :]
        elif kind == 4:
            data = data[:at] + data[max(0, at - size) :]
        elif rng.random() < 0.3:
            data = data[:at]
    return data


def json_value(rng: random.Random, value: Any) -> Any:
    """A copy of the value in which one to three places hold something else or are gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        value = _edit(rng, value)
    return value


def _edit(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return _another(rng, value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(list(keys))
    if rng.random() < 0.15:
        del value[key]
    elif isinstance(value, dict) and rng.random() < 0.1:
        value[rng.choice(["x", "", "\x1b[2J", key + "2", "__metadata__"])] = value[key]
    elif isinstance(value, list) and rng.random() < 0.1:
        times = rng.choice([1, 3, 1000])
        # A list repeated within a list that is repeated would be of gigabytes.
        value += [value[key]] * (times if len(repr(value[key])) < 1_000 else 1)
    else:
        value[key] = _edit(rng, value[key])
    return value


def _another(rng: random.Random, value: Any) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice([1, 5, 90, 150])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if kind == 1 and type(value) in (int, float):
        return rng.choice([-value, value + 1, value * 1000, float(value % 1000), str(value)])
    if kind == 2 and isinstance(value, str):
        return rng.choice([value * 2, value[1:], value.upper(), [value], value + "\0"])
    return copy.deepcopy(rng.choice(VALUES))


def json_bytes(rng: random.Random, data: bytes) -> bytes:
    """JSON with other values, sometimes damaged as text."""
    if rng.random() < 0.2:
        return some_bytes(rng, data)
    text = json.dumps(json_value(rng, json.loads(data)), ensure_ascii=rng.random() < 0.8)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        data = data.replace(b"1", b"1" * rng.choice([30, 5000]), 1)
    return some_bytes(rng, data) if rng.random() < 0.1 else data


def zip_bytes(
    rng: random.Random, data: bytes, member: Callable[[random.Random, str, bytes], bytes]
) -> bytes:
    """A zip archive with other bytes, another directory, or with members that `member` changes.

    The last has sound checksums, so that the change reaches the reader of the member.
    """
    kind = rng.randrange(4)
    if kind == 0:
        return some_bytes(rng, data)
    if kind == 1:
        return _directory(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    for name in rng.sample(names, min(len(names), rng.randint(1, 2))):
        members[name] = member(rng, name, members[name])
    if rng.random() < 0.15:
        members.pop(rng.choice(names))
    method = rng.choices((0, 8, 12, 14), (6, 2, 1, 1))[0]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            renamed = name if rng.random() < 0.97 else rng.choice(["../x", "x.npy", "a\0b", name])
            archive.writestr(zipfile.ZipInfo(renamed), content, method)
    return _directory(rng, out.getvalue()) if rng.random() < 0.1 else out.getvalue()


def _directory(rng: random.Random, data: bytes) -> bytes:
    """Another field in a local header, an entry of the directory, or the end record."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        sign, length = rng.choice([(b"PK\3\4", 30), (b"PK\1\2", 46), (b"PK\5\6", 22)])
        places = [m.start() for m in re.finditer(re.escape(sign), data[: len(data) - length + 4])]
        if not places:
            continue
        start = rng.choice(places)
        if sign == b"PK\1\2" and rng.random() < 0.2:  # one entry many times
            end, count = data.rfind(b"PK\5\6"), rng.choice([2, 20, 2000])
            entries = data[start:end] * count
            record = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entries), start, 0)
            return data[:start] + entries + record
        width = rng.choice([2, 4])
        at = start + rng.randrange(2, (length - width) // 2 + 1) * 2
        value = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.randrange(len(data))
        out[at : at + width] = (value % 256**width).to_bytes(width, "little")
    return bytes(out)


def npy_bytes(rng: random.Random, data: bytes) -> bytes:
    """A `.npy` file with another header."""
    if rng.random() < 0.3:
        return some_bytes(rng, data[:128]) + data[128:]
    length = int.from_bytes(data[8:10], "little")
    header, rest = data[10 : 10 + length].decode(), data[10 + length :]
    start, end = header.index("("), header.index(")")
    shape = [*header[start + 1 : end].replace(",", " ").split(), "3"]
    shape[rng.randrange(len(shape))] = rng.choice(
        ["-1", "0", "2**40", str(2**47), str(2**70), "1e3", "'a'", "True", "((", "7", "1" * 5000]
    )
    kinds = ["|O", "<f8", "<f2", "<c8", "|V2", "|V99999", "<U9", "<M8[s]", "|b1", ">f4", "<i8", "?"]
    if rng.random() < 0.5:
        header = header[: start + 1] + ", ".join(shape) + header[end:]
    if rng.random() < 0.5:
        header = header.replace("<f4", rng.choice(kinds))
    if rng.random() < 0.1:
        header = rng.choice(["(" * 900, "[" * 900, "-" * 900, "{" + "1:1," * 200 + "}", ""])
    if rng.random() < 0.2:
        return data[:6] + b"\2\0" + struct.pack("<I", len(header)) + header.encode() + rest
    return data[:8] + struct.pack("<H", len(header) % 2**16) + header.encode() + rest


def pickle_bytes(rng: random.Random, program: bytes) -> bytes:
    """A pickle program with other opcodes and arguments."""
    if rng.random() < 0.2:
        return some_bytes(rng, program)
    starts = [position for _, _, position in pickletools.genops(program)]
    operations = [program[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(operations))
        kind = rng.randrange(6)
        if kind == 0:
            operations.pop(at)
        elif kind == 1:
            operations.insert(at, rng.choice(operations))
        elif kind == 2:
            other = rng.randrange(len(operations))
            operations[at], operations[other] = operations[other], operations[at]
        elif kind == 3:
            operations.insert(at, rng.choice(_OPCODES) + rng.randbytes(rng.choice([0, 1, 4])))
        elif kind == 4:
            operations[at : at + 1] = [operations[at]] * rng.choice([2, 100, 20_000])
        else:
            operations[at] = _number(rng)
        if not operations:
            return b"."
    return b"".join(operations)


def _number(rng: random.Random) -> bytes:
    value = rng.choice([0, 1, -1, 2**31, 2**47, 2**48, 2**63, 2**70, -(2**70)])
    data = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
