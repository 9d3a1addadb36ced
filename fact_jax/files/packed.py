"""Packed tensors of small factor files: all arrays of a task, at a few bits a number, as bytes.

The arrays come in the order of their names and shapes, which the method and the head decide. Each
has its unit (float32), its steps (float16) and its codes (`algebra.quantise`), little-endian, the
first code in the lowest bits. A head's bias always has 16 bits.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from fact_jax.algebra.quantise import Bits, Quantised, dequantise, group_axes, quantise, steps_shape

Shapes = Mapping[str, tuple[int, ...]]


def packed_size(shapes: Shapes, bits: Bits) -> int:
    """Bytes of the packed arrays of these shapes."""
    return sum(sum(_sizes(name, shape, bits.of(name))) for name, shape in shapes.items())


def _sizes(name: str, shape: tuple[int, ...], bits: int) -> tuple[int, int, int]:
    """Bytes of an array's unit, steps and codes."""
    steps = 2 * math.prod(steps_shape(name, shape, bits))
    return 4, steps, -(-math.prod(shape) * bits // 8)


def pack(arrays: Mapping[str, np.ndarray], shapes: Shapes, bits: Bits) -> UInt8[np.ndarray, " n"]:
    """The bytes of arrays by name, in the order of `shapes`."""
    parts = []
    for name in shapes:
        width, axes = bits.of(name), group_axes(name, arrays[name].shape)
        codes, steps, unit = map(np.asarray, quantise(arrays[name], axes, width))
        parts += [unit.astype("<f4").tobytes(), steps.astype("<f2").tobytes()]
        parts.append(codes.astype("<f2").tobytes() if width == 16 else _joined(codes, width))
    return np.frombuffer(b"".join(parts), np.uint8)


def unpack(
    data: UInt8[np.ndarray, " n"], shapes: Shapes, bits: Bits
) -> dict[str, Float[np.ndarray, "..."]]:
    """The float32 arrays that `pack` made bytes of; `data` has ``packed_size`` bytes."""
    arrays, start = {}, 0
    for name, shape in shapes.items():
        width, pieces = bits.of(name), []
        for size in _sizes(name, shape, width):
            pieces.append(data[start : start + size].tobytes())
            start += size
        unit = np.frombuffer(pieces[0], "<f4").reshape(())
        steps = np.frombuffer(pieces[1], "<f2").reshape(steps_shape(name, shape, width))
        if width == 16:
            codes = np.frombuffer(pieces[2], "<f2").reshape(shape)
        else:
            codes = _cut(pieces[2], width)[: math.prod(shape)].reshape(shape)
        with np.errstate(over="ignore", invalid="ignore"):  # the reader refuses such numbers
            arrays[name] = np.asarray(dequantise(Quantised(codes, steps, unit), width))
    return arrays


def _joined(codes: np.ndarray, bits: int) -> bytes:
    """Codes of 1, 2, 4 or 8 bits as bytes."""
    per_byte, flat = 8 // bits, codes.astype(np.uint8).reshape(-1)
    rows = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    joined: bytes = np.bitwise_or.reduce(rows << shifts, axis=1).astype(np.uint8).tobytes()
    return joined


def _cut(data: bytes, bits: int) -> np.ndarray:
    """The codes in bytes, at least as many as there are."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    rows = np.frombuffer(data, np.uint8)[:, None] >> shifts
    return (rows & np.uint8(2**bits - 1)).reshape(-1)
