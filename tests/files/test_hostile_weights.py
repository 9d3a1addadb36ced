"""Weight files that are damaged, or that somebody made to do harm, are refused in little memory."""

import gc
import os
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
from safetensors.numpy import save_file
from weight_layouts import VARIANT, refused, same, timm

from fact_jax import get_variant, load_vit
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import write_npz


def test_damaged_safetensors(base, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(timm(base), path)
    content = path.read_bytes()
    for cut in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        refused(path, "truncated")
    header = b'{"cls_token":{"dtype":"F32","shape":[1,1,4000000000],"data_offsets":[0,4]}}'
    for length, rest, match in (
        (2**62, content[8:], "damaged"),
        (len(header), header + b"\0" * 4, "damaged"),
        (50_000_000, b"{" + b" " * 50_000_000, "a header of 50,000,000 bytes"),
    ):
        path.write_bytes(struct.pack("<Q", length) + rest)
        refused(path, match)


def header(text, version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def npy(shape, dtype="<f4"):
    return header(str({"descr": dtype, "fortran_order": False, "shape": shape}))


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return bytearray(path.read_bytes())


ARRAY = npy((1, 1, 192)) + b"\0" * 768


def with_members(path, base, members, method=zipfile.ZIP_DEFLATED):
    """A `.npz` of `base` with other contents of some members."""
    write_npz(path, get_variant(VARIANT), base)
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    zipped(path, {**content, **members}.items(), method)


def refused_in_little_memory(path, match):
    tracemalloc.start()
    refused(path, match)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_hostile_headers_of_arrays(tmp_path):
    path = tmp_path / "hostile.npz"
    zeros = b"\0" * 100_000_000
    for data, match in (
        (header(" " * 50_000_000, version=2), "header of 50,000,000 bytes"),
        (npy((1, 1, 192), "|V520000") + zeros, "of type"),
        (npy((1, 1, 192), "|V4") + b"\0" * 768, "of type"),
        (npy((1, 1, 192), "<c8") + b"\0" * 1536, "of type"),
        (npy((1, 1, -192)), "impossible shape"),
        (npy((2**70, 2)), "impossible shape"),
        (header("(" * 9000), "header"),
        (header("-" * 5000 + "1"), "header"),
        (header("{'descr': "), "header"),
        (header("{'descr': '<f4', 'fortran_order': 1, 'shape': 3}"), "header"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "magic"),
    ):
        zipped(path, [("cls.npy", data)], zipfile.ZIP_DEFLATED)
        refused_in_little_memory(path, match)


def test_directories_that_make_much_of_little_are_refused(tmp_path):
    """One member named many times, shared bytes, and decompressors without a bound."""
    path = tmp_path / "m.npz"
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")):
        zipped(path, [("a.npy", ARRAY)], method)
        refused(path, f"is compressed by {name}, expected deflate or none")

    content = zipped(path, [("a.npy", ARRAY)])
    start, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    entry = bytes(content[start:end])

    def directory(*entries):
        size = sum(map(len, entries))
        record = struct.pack(
            "<4s4H2LH", b"PK\5\6", 0, 0, *[len(entries) % 2**16] * 2, size, start, 0
        )
        path.write_bytes(bytes(content[:start]) + b"".join(entries) + record)

    directory(entry, entry)
    refused(path, "two members are named 'a.npy'")
    directory(entry, entry.replace(b"a.npy", b"b.npy"))
    refused(path, "'b.npy' shares bytes with another")
    directory(entry[:20] + struct.pack("<L", 10**6) + entry[24:])  # the compressed size
    refused(path, "a member reaches into the directory")
    directory(entry[:8] + b"\1" + entry[9:])
    refused(path, "is encrypted")
    zipped(path, [(f"{i}.npy", ARRAY[:200]) for i in range(5001)])
    refused(path, "5,001 tensors, expected at most 5,000")
    directory(*[entry.replace(b"a.npy", b"%05d" % i) for i in range(90_000)])
    refused(path, "its directory has more than 4,194,304 bytes")


def test_no_file_stays_open(zeros, tmp_path):
    """The file is closed when it is read and when it is refused."""
    write_npz(tmp_path / "a.npz", get_variant(VARIANT), zeros)
    (tmp_path / "a.pth").write_bytes(torch_bytes(timm(zeros)))
    zipped(tmp_path / "b.npz", [("a.npy", ARRAY)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for name in ("a.npz", "a.pth"):
            load_vit(VARIANT, tmp_path / name)
        refused(tmp_path / "b.npz", "not a ViT")
        gc.collect()
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert not [name for name in opened if str(tmp_path) in name]


def test_numbers_that_are_not_finite(base, tmp_path):
    path = tmp_path / "nan.safetensors"
    for value, dtype in ((np.nan, np.float32), (np.inf, np.float16), (1e300, np.float64)):
        tensors = timm(base)
        tensors["cls_token"] = np.full((1, 1, 192), value, dtype)
        save_file(tensors, path)
        refused(path, "'cls_token' has numbers that are not finite")


def test_zip_bombs_are_refused_without_being_read(zeros, tmp_path):
    """40 MB a member of zeros, a few KB compressed; nothing of that size may be allocated."""
    path, bomb = tmp_path / "bomb.npz", b"\0" * 40_000_000
    never_needed = {"head/kernel.npy": npy((10_000_000,)) + bomb, "README.txt": b"hello"}
    with_members(path, zeros, never_needed)
    same(zeros, path)
    with_members(path, zeros, {**never_needed, "cls.npy": npy((1, 1, 10_000_000)) + bomb})
    refused_in_little_memory(path, r"expected \[1, 1, 192\]")
    with_members(path, zeros, {"cls.npy": npy((1, 1, 192)) + bomb})  # more than its header says
    refused_in_little_memory(path, "not the size")
    with_members(path, zeros, {"cls.npy": npy((1, 1, 192))}, zipfile.ZIP_STORED)  # less
    refused(path, "not the size")
    content = zipped(path, [("a.npy", ARRAY)], zipfile.ZIP_DEFLATED)
    path.write_bytes(content[:60] + b"\xff" * 30 + content[90:])
    refused(path, "damaged")
