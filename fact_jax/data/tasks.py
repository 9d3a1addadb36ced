"""The 19 tasks of VTAB-1K as a table of data.

Sources: google-research/task_adaptation d7630d3 (builders, versions, labels; split offsets from
the counts in its tests); NOAH e9c55f3, whose copies FacT's published numbers were made with.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fact_jax.data import labels
from fact_jax.errors import UserError

TRAIN, VAL, TRAIN_VAL, TEST = "train800", "val200", "train800val200", "test"
FOLDER = "folder"  # the builder of what is read from files, without TFDS


@dataclass(frozen=True)
class Task:
    """One classification task read through TFDS.

    Attributes:
      name: as in the result tables.
      group: 'natural', 'specialized', 'structured', 'offline', 'fewshot' or 'own'.
      num_classes: number of classes after the label formula.
      builder: TFDS name with its config, 'eurosat/rgb'.
      versions: the published version request, '3.*.*'.
      splits: from 'train800', 'val200', 'train800val200', 'test' to a TFDS split string.
      test_size: number of examples in 'test'.
      label: from a decoded TFDS example (numpy values) to the class.
      label_features: features the formula reads ('objects/type' is nested), with the number of
        classes the builder must declare for each, None where it is not a class.
      image_key: the image feature.
      binary: pixels are stored as 0 and 1 and shown as 0 and 255 (dSprites).
      substitutes: versions accepted in the place of `versions`, best first.
      note: what a reader of a result should know about version or source.
      manual: files or directories that a person puts in the manual directory.
      fetch: where these files, or those of a dead source, are had, in words.
      dead: what is known of a source that no longer answers; empty if it works.
      builder_module: module to import so that TFDS knows the builder; None for TFDS's own.
      offline: comes with the package (`offline/bundled.py`).
      elsewhere: another way to provide the data than through TFDS, a sentence; empty if none.
    """

    name: str
    group: str
    num_classes: int
    builder: str
    versions: str
    splits: Mapping[str, str]
    test_size: int
    label: Callable[[Mapping[str, Any]], int] = labels.plain
    label_features: Mapping[str, int | None] = field(default_factory=lambda: {"label": None})
    image_key: str = "image"
    binary: bool = False
    substitutes: tuple[str, ...] = ()
    note: str = ""
    manual: tuple[str, ...] = ()
    fetch: str = ""
    dead: str = ""
    builder_module: str | None = None
    offline: bool = False
    elsewhere: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples each split must have."""
        return {TRAIN: 800, VAL: 200, TRAIN_VAL: 1000, TEST: self.test_size}

    def train_split(self, seed: int, final: bool) -> str:
        """What a run of this seed is trained on, with its settings chosen (`final`) or before."""
        return TRAIN_VAL if final else TRAIN

    def eval_split(self, final: bool) -> str:
        """What a run is measured on."""
        return TEST if final else VAL


def make_splits(val: str, test: str = "test", train: str = "train[:800]") -> dict[str, str]:
    """The four split strings from the TFDS strings of train, validation and test."""
    return {TRAIN: train, VAL: val, TRAIN_VAL: f"{train}+{val}", TEST: test}


def _plain(num_classes: int, feature: str = "label") -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "label": partial(labels.plain, feature=feature),
        "label_features": {feature: num_classes},
    }


_CLEVR: dict[str, Any] = {
    "builder": "clevr",
    "versions": "3.*.*",
    "splits": make_splits("train[63000:63200]", "validation"),
    "test_size": 15000,
    "label_features": {"objects/pixel_coords": None},
}
_DSPRITES: dict[str, Any] = {
    "builder": "dsprites",
    "versions": "2.*.*",
    "splits": make_splits("train[589824:590024]", "train[663552:]"),
    "test_size": 73728,
    "num_classes": 16,
    "binary": True,
}
_SMALLNORB: dict[str, Any] = {
    "builder": "smallnorb",
    "versions": "2.*.*",
    # val200 comes from the first half of TFDS's test split, test is the second half.
    "splits": make_splits("test[:200]", "test[50%:]"),
    "test_size": 12150,
}
_VALIDATION = make_splits("validation[:200]")

_TASKS = (
    Task(
        "cifar",
        "natural",
        builder="cifar100",
        versions="3.*.*",
        splits=make_splits("train[45000:45200]"),
        test_size=10000,
        **_plain(100),
    ),
    Task(
        "caltech101",
        "natural",
        builder="caltech101",
        versions="3.*.*",
        splits=make_splits("train[2754:2954]"),
        test_size=6084,
        note="TFDS draws 30 training images a class over an unsorted directory listing: the "
        "partition can differ between file systems",
        **_plain(102),
    ),
    Task(
        "dtd",
        "natural",
        builder="dtd",
        versions="3.*.*",
        splits=_VALIDATION,
        test_size=1880,
        **_plain(47),
    ),
    Task(
        "oxford_flowers102",
        "natural",
        builder="oxford_flowers102",
        versions="2.*.*",
        splits=_VALIDATION,
        test_size=6149,
        **_plain(102),
    ),
    Task(
        "oxford_iiit_pet",
        "natural",
        builder="oxford_iiit_pet",
        versions="3.*.*",
        substitutes=("4.*.*",),
        splits=make_splits("train[2944:3144]"),
        test_size=3669,
        note="4.0.0 repaired corrupt images and added boxes; whether its order of examples is "
        "that of 3.2.0 is not known",
        **_plain(37),
    ),
    Task(
        "svhn",
        "natural",
        builder="svhn_cropped",
        versions="3.*.*",
        splits=make_splits("train[65931:66131]"),
        test_size=26032,
        **_plain(10),
    ),
    Task(
        "sun397",
        "natural",
        builder="sun397/tfds",
        versions="4.*.*",
        splits=_VALIDATION,
        test_size=21750,
        dead="https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz and its copy at MIT "
        "answer 404 (github.com/pytorch/vision/issues/9348)",
        fetch="the published SUN397.tar.gz (39,077,296,924 bytes) and Partitions.zip (18,293,705 "
        "bytes; TFDS checks the SHA-256 of both) from someone who has them",
        **_plain(397),
    ),
    Task(
        "patch_camelyon",
        "specialized",
        builder="patch_camelyon",
        versions="2.*.*",
        splits=_VALIDATION,
        test_size=32768,
        **_plain(2),
    ),
    Task(
        "eurosat",
        "specialized",
        builder="eurosat/rgb",
        versions="2.*.*",
        splits=make_splits("train[16200:16400]", "train[21600:]"),
        test_size=5400,
        **_plain(10),
    ),
    Task(
        "resisc45",
        "specialized",
        builder="resisc45",
        versions="3.*.*",
        splits=make_splits("train[18900:19100]", "train[25200:]"),
        test_size=6300,
        manual=("NWPU-RESISC45",),
        fetch="NWPU-RESISC45.rar (31,500 images in 45 folders) from "
        "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs, extracted so that the folder "
        "NWPU-RESISC45 holds airplane/airplane_001.jpg and so on",
        **_plain(45),
    ),
    Task(
        "diabetic_retinopathy",
        "specialized",
        builder="diabetic_retinopathy_detection/btgraham-300",
        versions="3.*.*",
        splits=_VALIDATION,
        test_size=42670,
        manual=("sample", "train", "test", "trainLabels.csv"),
        fetch="sample.zip, train.zip.001 to .005, test.zip.001 to .007 and trainLabels.csv.zip "
        "from https://www.kaggle.com/c/diabetic-retinopathy-detection/data (Kaggle account, rules "
        "accepted, 88 GB), unpacked so that sample, train and test hold 10_left.jpeg and so on",
        **_plain(5),
    ),
    Task("clevr_count", "structured", 8, label=labels.object_count, **_CLEVR),
    Task("clevr_dist", "structured", 6, label=labels.nearest_object, **_CLEVR),
    Task(
        "dmlab",
        "structured",
        builder="dmlab",
        versions="2.0.1",
        splits=_VALIDATION,
        test_size=22735,
        **_plain(6),
    ),
    Task(
        "kitti",
        "structured",
        4,
        builder="kitti",
        versions="3.1.0",
        substitutes=("3.2.0", "3.3.0"),
        splits=_VALIDATION,
        test_size=711,
        label=labels.nearest_vehicle,
        label_features={"objects/location": None, "objects/type": 8},
        note="task_adaptation asks for 3.1.0, NOAH and VPT for 3.2.0 (same data; the devkit's file "
        "was updated); TFDS now prepares only 3.3.0, which added names of the occlusion labels",
    ),
    Task(
        "dsprites_loc",
        "structured",
        label=partial(labels.binned, feature="label_x_position", width=2.0),
        label_features={"label_x_position": 32},
        **_DSPRITES,
    ),
    Task(
        "dsprites_ori",
        "structured",
        label=partial(labels.binned, feature="label_orientation", width=2.5),
        label_features={"label_orientation": 40},
        **_DSPRITES,
    ),
    Task("smallnorb_azi", "structured", **_plain(18, "label_azimuth"), **_SMALLNORB),
    Task("smallnorb_ele", "structured", **_plain(9, "label_elevation"), **_SMALLNORB),
)

VTAB: dict[str, Task] = {task.name: task for task in _TASKS}


def all_tasks() -> dict[str, Task]:
    """VTAB's tasks and the offline suite's, by name."""
    from fact_jax.data.offline import OFFLINE  # here, so that VTAB alone needs nothing of it

    return {**VTAB, **OFFLINE}


def get_task(name: str) -> Task:
    """The task of this name; UserError with the nearest names if there is none.

    Few-shot tasks (`fact_jax/data/fewshot.py`) are named NAME_Kshot: food101_4shot. A folder of
    pictures (`fact_jax/data/folders.py`) is folder_NAME.
    """
    if name in VTAB:
        return VTAB[name]
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    from fact_jax.data import fewshot, folders  # here, because they import this module

    if found := fewshot.find(name) or folders.find(name):
        return found
    if name.startswith(f"{FOLDER}_"):
        raise UserError(
            f"Task {name!r}: the name of a folder begins with a letter or digit and holds letters "
            "of ASCII, digits, '_', '-' and '.', since files are called after it. Rename it, or "
            "make a link of such a name to it."
        )
    near = difflib.get_close_matches(name, [*tasks, *fewshot.published_names()], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"There is no task {name!r}.{hint} The tasks are: {', '.join(tasks)}; and NAME_Kshot, K at "
        f"least 1, where NAME is one of {', '.join(fewshot.NAMES)}; and folder_NAME (and "
        "folder_NAME_Kshot) for a folder of pictures in the data directory."
    )
