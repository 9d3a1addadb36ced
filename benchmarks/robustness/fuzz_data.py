"""Targets of the fuzzer: pictures in every format that is read, lists, and the data cache."""

import functools
import io
import json
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.robustness import fuzz_mutate
from benchmarks.robustness.fuzz_target import Target
from fact_jax import UserError
from fact_jax.data import DataSettings, cache, get_task, open_task
from fact_jax.data.sources.few_shot_lists import find_lists
from fact_jax.images import pipeline
from fact_jax.images.decoder import PictureError

_MOST_PIXELS = 10_000_000  # Pillow refuses twice as many; the default would take more than 500 MB
_TASK = "oxford_pets_1shot"
_JSON = "split_zhou_OxfordPets.json"


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (12, 10)).astype("uint16"))
    floats = Image.fromarray(rng.random((12, 10)).astype("float32"))
    several = {"save_all": True, "append_images": [rgb]}
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [_encoded(rgb, k) for k in ("PNG", "JPEG", "BMP", "PPM", "QOI", "JPEG2000", "TIFF")]
    files += [_encoded(rgb, k, exif=exif) for k in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")]
    files += [_encoded(rgb, kind, **several) for kind in ("PNG", "GIF", "WEBP", "AVIF", "MPO")]
    files += [_encoded(rgb.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGBA")]
    files += [_encoded(rgb.convert("CMYK"), "JPEG", progressive=True)]
    files += [_encoded(deep, kind) for kind in ("PNG", "PPM", "TIFF", "JPEG2000")]
    files += [_encoded(floats, "TIFF"), b"P3 1 2 9\n1 2 3\n4 5 6\n", b"Pf\n1 1\n-1.0\n" + bytes(4)]
    compressions = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files += [_encoded(rgb, "TIFF", compression=name) for name in compressions]
    return files


def _decode(path: Path) -> None:
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    try:
        pipeline.decode(path, 32, jpeg_quality=75)
    except PictureError as error:
        raise UserError(str(error)) from error


@functools.cache
def _image_folder() -> Path:
    """A data directory with images for the lists; the files are empty, since none is decoded."""
    root = Path(tempfile.mkdtemp())
    folder = root / "oxford_pets" / "images"
    folder.mkdir(parents=True)
    for entry in (entry for part in _split().values() for entry in part):
        (folder / entry[0]).write_bytes(b"")
    return root


def _split() -> dict[str, list]:
    sizes = dict(get_task(_TASK).few_shot.list_sizes)
    return {
        part: [[f"{part}{i}.jpg", i % 37, f"class {i % 37}"] for i in range(count)]
        for part, count in sizes.items()
    }


def _coop() -> list[bytes]:
    return [json.dumps(_split()).encode()]


def _noah() -> list[bytes]:
    lines = [f"{path} {label}\n" for path, label, _ in _split()["val"]]
    return ["".join(lines).encode(), "\r\n".join(line.strip() for line in lines).encode()]


def _read_coop(path: Path) -> None:
    folder = _image_folder() / "oxford_pets"
    shutil.rmtree(folder / "annotations", ignore_errors=True)
    shutil.copy(path, folder / _JSON)
    find_lists(get_task(_TASK), str(folder.parent))


def _read_noah(path: Path) -> None:
    folder, split = _image_folder() / "oxford_pets" / "annotations", _split()
    folder.mkdir(exist_ok=True)
    for name, part in (("train_meta.list.num_shot_1.seed_0", "train"), ("test_meta.list", "test")):
        text = "".join(f"{entry[0]} {entry[1]}\n" for entry in split[part][:3669])
        (folder / name).write_text(text)
    shutil.copy(path, folder / "val_meta.list")
    find_lists(get_task(_TASK), str(folder.parent.parent))


@functools.cache
def _csv_folder() -> Path:
    """A folder of 40 pictures, which CSV files name."""
    root = Path(tempfile.mkdtemp())
    for i in range(40):
        Image.new("RGB", (4, 4)).save(root / f"{i}.png")
    return root


def _csv_files() -> list[bytes]:
    """CSV files of one class and of several labels a picture, with and without parts."""
    single = "".join(f"{i}.png,kind {i % 4}\n" for i in range(40))
    several = "".join(f"{i}.png,a|b\n" if i % 3 else f'{i}.png,"a"\n' for i in range(40))
    parts = "".join(f"{i}.png,k{i % 2},{'test' if i > 30 else 'train'}\n" for i in range(40))
    texts = [f"path,label\n{single}", f"path,labels\r\n{several}", f"path,label,split\n{parts}"]
    return [text.encode() for text in texts]


def _read_csv(path: Path) -> None:
    shutil.copy(path, _csv_folder() / "x.csv")
    open_task(get_task("csv_x"), DataSettings(str(_csv_folder()), image_size=4))


def _entry(root: Path) -> Path:
    """Builds or reads the one entry of a data cache, and returns its folder."""
    batch = np.zeros((3, 4, 4, 3), np.uint8), np.arange(3, dtype=np.int32)
    key = {"task": "t", "split": "s"}
    pixels, labels = cache.cached(root, key, 3, 4, lambda: [batch])
    assert labels.tolist() == [0, 1, 2]
    assert pixels.shape == (3, 4, 4, 3)
    return next(path for path in root.iterdir() if path.name.startswith("t-s"))


def _cache_files() -> list[bytes]:
    """Each file of an entry, behind its name and a newline."""
    with tempfile.TemporaryDirectory() as root:
        files = sorted(_entry(Path(root)).iterdir())
        return [file.name.encode() + b"\n" + file.read_bytes() for file in files]


def _mutate_cache(rng: random.Random, data: bytes) -> bytes:
    name, _, content = data.partition(b"\n")
    kind = rng.randrange(3)
    if name.endswith(b".json") and kind:
        return name + b"\n" + fuzz_mutate.json_bytes(rng, content)
    if name.endswith(b".npy") and kind:
        return name + b"\n" + fuzz_mutate.npy_bytes(rng, content)
    return name + b"\n" + fuzz_mutate.some_bytes(rng, content)


def _read_cache(path: Path) -> None:
    name, _, content = path.read_bytes().partition(b"\n")
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (_entry(Path(root)) / name.decode()).write_bytes(content)
        _entry(Path(root))


TARGETS: dict[str, Target] = {
    "pictures": Target(".img", _pictures, fuzz_mutate.some_bytes, _decode),
    "lists": Target(".json", _coop, fuzz_mutate.json_bytes, _read_coop, share=0.5),
    "lists_noah": Target(".list", _noah, fuzz_mutate.some_bytes, _read_noah, share=0.5),
    "csv": Target(".csv", _csv_files, fuzz_mutate.some_bytes, _read_csv, share=0.5),
    "cache": Target(".entry", _cache_files, _mutate_cache, _read_cache),
}
