"""Keys, records, rows and words of data are those that an earlier version wrote.

stored/data.json was written by this file's `observe` with the code of 8fa6322.
"""

import hashlib
import json

import numpy as np
import PIL
import pytest
from places import ROOT

from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.errors import UserError

STORED = ROOT / "tests" / "stored" / "data.json"
WHOLE = ("train800", "val200", "train800val200", "test", "train")
FOLDER = ("train", "val", "train+val", "test", "train800")
LISTS = ("train-seed0", "train-seed2", "train-seed7", "val", "test", "train")
OPENED = {
    **dict.fromkeys(("digits", "location"), WHOLE),
    **dict.fromkeys(("folder_flat", "folder_parts", "folder_vals", "folder_none"), FOLDER),
    **dict.fromkeys(("digits_3shot", "fashion_2shot", "folder_flat_2shot"), LISTS),
    **dict.fromkeys(("folder_parts_7shot", "fgvc_aircraft_2shot", "oxford_pets_1shot"), LISTS),
    **dict.fromkeys(("oxford_pets_4shot", "oxford_pets_90shot"), LISTS),
}


def picture(path, *seed):
    """A picture of 8 x 8 pixels, whose file does not depend on a version of Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, 192, np.uint8)
    path.write_bytes(b"P6 8 8 255\n" + pixels.tobytes())


def write_folders(root):
    """Folders of classes without parts, with all parts, and with `valid` alone."""
    sizes = {
        "flat": {"ant": 12, "bee": 15, "café": 9},
        "parts": {"train/a": 6, "train/b": 7, "val/a": 3, "val/b": 2, "test/a": 4, "test/b": 5},
        "vals": {"train/a": 6, "train/b": 7, "valid/a": 3, "valid/b": 2},
    }
    for name, classes in sizes.items():
        for i, (folder, count) in enumerate(classes.items()):
            for j in range(count):
                picture(root / name / folder / f"{j}.ppm", i, j)


def write_lists(root):
    """Aircraft with its own lists, Pets with CoOp's, and NOAH's for 1 shot."""
    aircraft, pets = root / "fgvc_aircraft", root / "oxford_pets"
    for i in range(100):
        picture(aircraft / "images" / f"{i}.jpg", 1, i)
    (aircraft / "variants.txt").write_text("".join(f"variant {i}\n" for i in range(100)))
    for part, size in (("train", 3334), ("val", 3333), ("test", 3333)):
        names = [f"{part}{i}" for i in range(size)]
        for i, name in enumerate(names):
            (aircraft / "images" / f"{name}.jpg").hardlink_to(aircraft / f"images/{i % 100}.jpg")
        text = "".join(f"{name} variant {i % 100}\n" for i, name in enumerate(names))
        (aircraft / f"images_variant_{part}.txt").write_text(text)
    coop = {}
    for part, size in (("train", 2944), ("val", 736), ("test", 3669)):
        coop[part] = [[f"{part}{i}.ppm", i % 37, f"class {i % 37}"] for i in range(size)]
        for i, (name, *_) in enumerate(coop[part]):
            picture(pets / "images" / name, 2, i % 50)
    (pets / "split_zhou_OxfordPets.json").write_text(json.dumps(coop))
    noah = {f"train_meta.list.num_shot_1.seed_{s}": coop["train"][37 * s :][:37] for s in (0, 2)}
    noah |= {f"{part}_meta.list": coop[part] for part in ("val", "test")}
    (pets / "annotations").mkdir()
    for name, entries in noah.items():
        text = "".join(f"{path} {label}\n" for path, label, _ in entries)
        (pets / "annotations" / name).write_text(text)


def observe(root, name, splits):
    """A task's record, and of each split the key in the cache, and digests of what was read."""
    settings = DataSettings(data_dir=str(root), image_size=8, cache_dir=str(root / "cache" / name))
    try:
        data = open_task(get_task(name), settings)
    except UserError as error:
        return plain(root, str(error))
    seen = {"record": data.provenance, "classes": data.class_names, "splits": {}}
    for split in splits:
        try:
            images, labels = data.load(split, 50)
        except UserError as error:
            seen["splits"][split] = str(error)
            continue
        (entry,) = (root / "cache" / name).glob(f"*-{split}-*")
        key = json.loads(json.loads((entry / "record.json").read_text())["key"])
        digests = [hashlib.md5(array.tobytes()).hexdigest()[:8] for array in (images, labels)]
        seen["splits"][split] = [data.size(split), *digests, key]
    return plain(root, seen)


def plain(root, value):
    """A value as JSON, without the place and the versions."""
    text = json.dumps(value).replace(str(root), "ROOT").replace(PIL.__version__, "PILLOW")
    return json.loads(text.replace(np.__version__, "NUMPY"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_folders(root)
    write_lists(root)
    return root


@pytest.mark.parametrize("name", OPENED)
def test_records_keys_and_rows_are_those_of_earlier_versions(name, root):
    assert observe(root, name, OPENED[name]) == json.loads(STORED.read_text())[name]
