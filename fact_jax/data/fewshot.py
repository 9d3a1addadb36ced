"""The few-shot tasks as a table: NAME_Kshot, K training images a class.

Five fine-grained sets, on which NOAH and FacT report accuracy against shots, and the offline suite.
Sources: NOAH e9c55f3 (lists, sizes of val and test), CoOp's DATASETS.md (layout of folders, sizes
of its train lists), TFDS 4.9.10 (the official splits).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fact_jax.data.offline import OFFLINE
from fact_jax.data.tasks import FOLDER, Task
from fact_jax.errors import UserError

PUBLISHED_SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class FewShotTask(Task):
    """K training images a class, a validation list and a test list.

    What is read is 'train-seed0', 'train-seed1', ... (the K-shot list of that seed), 'val' and
    'test'. The fields of `Task` say how TFDS has them: `splits` holds 'train', from which the
    lists are drawn, 'test', and 'val' where `held_out` is 0.

    Attributes:
      dataset: name without the shots.
      shots: K.
      split_sizes: number of examples of each of `splits`.
      held_out: images a class of 'train' that are kept for 'val', before any list is drawn.
      folders: names that people give to the folder of images and lists, best first.
      json: name of CoOp's file of lists; None where it uses the official lists.
      list_sizes: number of examples in the lists of NOAH and CoOp ('train': CoOp's).
    """

    dataset: str = ""
    shots: int = 1
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    held_out: int = 0
    folders: tuple[str, ...] = ()
    json: str | None = None
    list_sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.split_sizes)

    def train_split(self, seed: int, final: bool) -> str:
        return f"train-seed{seed}"

    def eval_split(self, final: bool) -> str:
        return "test" if final else "val"


def _sizes(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


_NOT_COOPS_TEST = "read from TFDS, the test set is the official one, not that of CoOp and NOAH"

# Fields of each set, but for those that follow from name and shots.
_SETS: dict[str, dict[str, Any]] = {
    "food101": {
        "num_classes": 101,
        "builder": "food101",
        "versions": "2.*.*",
        "splits": {"train": "train", "test": "validation"},
        "split_sizes": {"train": 75750, "test": 25250},
        "held_out": 200,
        "folders": ("food-101", "food101"),
        "json": "split_zhou_Food101.json",
        "list_sizes": _sizes(50500, 20200, 30300),
        "note": _NOT_COOPS_TEST,
    },
    "stanford_cars": {
        "num_classes": 196,
        "builder": "cars196",
        "versions": "2.*.*",
        "splits": {"train": "train", "test": "test"},
        "split_sizes": {"train": 8144, "test": 8041},
        "held_out": 5,
        "folders": ("stanford_cars", "standford-cars"),  # the latter as NOAH spells it
        "json": "split_zhou_StanfordCars.json",
        "list_sizes": _sizes(6509, 1635, 8041),
        "dead": "http://ai.stanford.edu/~jkrause/car196 and https://ai.stanford.edu/~jkrause/cars "
        "no longer answer",
        "fetch": "the published cars_train.tgz (979,269,282 bytes), cars_test.tgz (977,350,468 "
        "bytes), cars_test_annos_withlabels.mat and car_devkit.tgz (TFDS checks the SHA-256 of "
        "all four) from someone who has them",
    },
    "oxford_flowers": {
        "num_classes": 102,
        "builder": "oxford_flowers102",
        "versions": "2.*.*",
        # The official train part has 10 images a class, too few for 16 shots.
        "splits": {"train": "train+validation", "test": "test"},
        "split_sizes": {"train": 2040, "test": 6149},
        "held_out": 4,
        "folders": ("oxford_flowers", "oxford-flowers102"),
        "json": "split_zhou_OxfordFlowers.json",
        "list_sizes": _sizes(4093, 1633, 2463),
        "note": _NOT_COOPS_TEST,
    },
    "fgvc_aircraft": {
        "num_classes": 100,
        "builder": "fgvc_aircraft",
        "builder_module": "fact_jax.data.aircraft",
        "versions": "1.*.*",
        "splits": {"train": "train", "val": "validation", "test": "test"},
        "split_sizes": _sizes(3334, 3333, 3333),
        "folders": ("fgvc_aircraft", "fgvc-aircraft", "fgvc-aircraft-2013b/data"),
        "list_sizes": _sizes(3334, 3333, 3333),
    },
    "oxford_pets": {
        "num_classes": 37,
        "builder": "oxford_iiit_pet",
        "versions": "4.*.*",
        "splits": {"train": "train", "test": "test"},
        "split_sizes": {"train": 3680, "test": 3669},
        "held_out": 20,
        "folders": ("oxford_pets", "oxford-pets"),
        "json": "split_zhou_OxfordPets.json",
        "list_sizes": _sizes(2944, 736, 3669),
    },
}
FEW_SHOT = tuple(_SETS)
NAMES = (*FEW_SHOT, *OFFLINE)


def _elsewhere(folders: tuple[str, ...], json: str | None) -> str:
    lists = f"CoOp's {json}" if json else "the official images_variant_train.txt and so on"
    return (
        f"A folder {' or '.join(folders)} in the data directory serves as well, with the images "
        f"and either NOAH's lists (annotations/test_meta.list and so on, from data/few-shot of "
        f"github.com/ZhangYuanhan-AI/NOAH) or {lists} (github.com/KaiyangZhou/CoOp, DATASETS.md); "
        f"then TFDS is not needed."
    )


def few_shot_task(dataset: str, shots: int) -> FewShotTask:
    """The K-shot task of one of `NAMES` or of folder_NAME; UserError if K is less than 1."""
    name = f"{dataset}_{shots}shot"
    if shots < 1:
        raise UserError(f"Task {name}: the number of shots must be at least 1.")
    if dataset in _SETS:
        fields = _SETS[dataset]
        return FewShotTask(
            name=name,
            group="fewshot",
            dataset=dataset,
            shots=shots,
            test_size=fields["split_sizes"]["test"],
            label_features={"label": fields["num_classes"]},
            elsewhere=_elsewhere(fields["folders"], fields.get("json")),
            **fields,
        )
    if dataset.startswith(f"{FOLDER}_"):  # its classes are known when it is read
        return FewShotTask(
            name, "fewshot", num_classes=0, builder=FOLDER, versions="-", splits={}, test_size=0,
            dataset=dataset, shots=shots, folders=(dataset.removeprefix(f"{FOLDER}_"),),
        )  # fmt: skip
    whole = OFFLINE[dataset]
    fields = {f.name: getattr(whole, f.name) for f in dataclasses.fields(Task)}
    fields |= {
        "name": name,
        "group": "fewshot",
        "splits": {"train": "train", "val": "validation", "test": "test"},
        "split_sizes": _sizes(800, 200, whole.test_size),
    }
    return FewShotTask(dataset=dataset, shots=shots, **fields)


def find(name: str) -> FewShotTask | None:
    """The task of this name, None if it is not the name of a few-shot task."""
    match = re.fullmatch(r"(folder_[A-Za-z0-9][\w.-]*|\w+)_(0|[1-9]\d{0,3})shot", name, re.ASCII)
    known = match and (match[1] in NAMES or match[1].startswith(f"{FOLDER}_"))
    return few_shot_task(match[1], int(match[2])) if match and known else None


def published_names() -> list[str]:
    """Every set with the numbers of shots that are reported, to guess a misspelt name from."""
    return [f"{name}_{shots}shot" for name in NAMES for shots in PUBLISHED_SHOTS]
