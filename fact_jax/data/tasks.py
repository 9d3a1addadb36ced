"""The type of a task. `tables/` holds the tasks, and `catalog.py` finds them by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fact_jax.data import labels

TRAIN, VAL, TRAIN_VAL, TEST = "train800", "val200", "train800val200", "test"
CSV = "csv"  # how tasks of CSV files are called
FOLDER = "folder"  # the builder of tasks that are read from files, without TFDS


class Stages(NamedTuple):
    """Names of the splits of a run; '{seed}' stands for the run's seed.

    Attributes:
      train: the split to train on while settings are chosen.
      val: the split to choose settings on.
      final: the split to train on with the chosen settings.
      test: the split to measure the result on.
    """

    train: str
    val: str
    final: str
    test: str


VTAB_STAGES = Stages(TRAIN, VAL, TRAIN_VAL, TEST)
FEW_SHOT_STAGES = Stages("train-seed{seed}", "val", "train-seed{seed}", "test")
FOLDER_STAGES = Stages("train", "val", "train+val", "test")


@dataclass(frozen=True)
class FewShot:
    """K training images a class of a data set, and where its lists may lie.

    Attributes:
      shots: K; 0 in the tables, which serve all K.
      held_out: images a class of TFDS's 'train' that are kept for 'val', before any list is drawn.
      folders: names that people give to the folder of images and lists, best first.
      json: name of CoOp's file of lists; None where it uses the official lists.
      list_sizes: number of examples in the lists of NOAH and CoOp ('train': CoOp's).
    """

    shots: int = 0
    held_out: int = 0
    folders: tuple[str, ...] = ()
    json: str | None = None
    list_sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def elsewhere(self) -> str:
        """A sentence on the folders that serve in the place of TFDS; empty if there are none."""
        if not self.folders:
            return ""
        lists = (
            f"CoOp's {self.json}"
            if self.json
            else "the official images_variant_train.txt and so on"
        )
        return (
            f"A folder {' or '.join(self.folders)} in the data directory serves as well, with the "
            "images and either NOAH's lists (annotations/test_meta.list and so on, from "
            f"data/few-shot of github.com/ZhangYuanhan-AI/NOAH) or {lists} "
            "(github.com/KaiyangZhou/CoOp, DATASETS.md); then TFDS is not needed."
        )


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes:
      name: as in the result tables.
      group: 'natural', 'specialized', 'structured', 'offline', 'fewshot' or 'own'.
      num_classes: number of classes after the label formula; 0 until its folder is read.
      builder: TFDS name with its config, 'eurosat/rgb'; 'folder' without TFDS.
      versions: the published version request, '3.*.*'.
      splits: from 'train800', 'val200', 'train800val200', 'test' to a TFDS split string. A few-shot
        task has 'train', from which its lists are drawn, 'test', and 'val' if none is held out.
      sizes: number of examples that each split must have; empty until its folder is read.
      label: from a decoded TFDS example (numpy values) to the class.
      label_features: features the formula reads ('objects/type' is nested), with the number of
        classes the builder must declare for each, None where it is not a class. By default it is
        'label', of the task's classes.
      image_key: the image feature.
      binary: pixels are stored as 0 and 1 and shown as 0 and 255 (dSprites).
      substitutes: versions accepted in the place of `versions`, best first.
      note: facts on version or source that a reader of a result should know.
      manual: files or directories that a person puts in the manual directory.
      fetch: the files to get for a manual or dead source, and where, in words.
      dead: why the source no longer answers, in words; empty if it works.
      builder_module: module to import so that TFDS knows the builder; None for TFDS's own.
      offline: comes with the package (`offline/bundled.py`).
      elsewhere: another way to provide the data than through TFDS, a sentence; empty if none.
      stages: the splits of a run.
      folder: name of the folder of pictures, or of the CSV file, in the data directory; empty for a
        published task.
      multi_label: whether an example has any number of labels; known when its data are open.
      few_shot: the rows that are trained on; None if all are.
    """

    name: str
    group: str
    num_classes: int
    builder: str
    versions: str
    splits: Mapping[str, str]
    sizes: Mapping[str, int]
    label: Callable[[labels.Example], int] = labels.plain
    label_features: Mapping[str, int | None] = field(default_factory=dict)
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
    stages: Stages = VTAB_STAGES
    folder: str = ""
    multi_label: bool = False
    few_shot: FewShot | None = None

    def __post_init__(self) -> None:
        if not self.label_features:
            object.__setattr__(self, "label_features", {"label": self.num_classes})

    @property
    def dataset(self) -> str:
        """Name without the shots of a few-shot task."""
        few = self.few_shot
        return self.name.removesuffix(f"_{few.shots}shot") if few else self.name

    @property
    def test_size(self) -> int:
        """Number of examples in 'test', 0 if it is not known yet."""
        return self.sizes.get(TEST, 0)

    def train_split(self, seed: int, final: bool) -> str:
        """The split that a run is trained on, with its settings chosen (`final`) or before."""
        stage = self.stages.final if final else self.stages.train
        return stage.format(seed=seed)

    def eval_split(self, final: bool) -> str:
        """The split that a run is measured on."""
        return self.stages.test if final else self.stages.val

    def expected_size(self, split: str) -> int:
        """Number of examples of a split before its data are opened, 0 if it is not known."""
        few = self.few_shot
        if few is None:
            return self.sizes.get(split, 0)
        if split.startswith("train-seed"):
            return few.shots * self.num_classes
        return few.list_sizes.get(split) or self.sizes.get(split, 0)


def make_splits(val: str, test: str = "test", train: str = "train[:800]") -> dict[str, str]:
    """The four split strings from the TFDS strings of train, validation and test."""
    return {TRAIN: train, VAL: val, TRAIN_VAL: f"{train}+{val}", TEST: test}


def make_sizes(test: int) -> dict[str, int]:
    """The sizes of VTAB-1K's four splits from the size of 'test'."""
    return {TRAIN: 800, VAL: 200, TRAIN_VAL: 1000, TEST: test}
