"""The sets of pictures that few-shot tasks draw from as a table of data.

Five fine-grained sets, on which NOAH and FacT report accuracy against shots. Sources: NOAH e9c55f3
(lists, sizes of val and test), CoOp's DATASETS.md (layout of folders, sizes of its train lists),
TFDS 4.9.10 (the official splits).
"""

from typing import Any

from fact_jax.data.tasks import FEW_SHOT_STAGES, FewShot, Task

PUBLISHED_SHOTS = (1, 2, 4, 8, 16)


def _sizes(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


def _set(num_classes: int, few_shot: FewShot, **fields: Any) -> Task:
    lists = (
        f"CoOp's {few_shot.json}"
        if few_shot.json
        else "the official images_variant_train.txt and so on"
    )
    return Task(
        few_shot.dataset,
        "fewshot",
        num_classes,
        label_features={"label": num_classes},
        stages=FEW_SHOT_STAGES,
        few_shot=few_shot,
        elsewhere=f"A folder {' or '.join(few_shot.folders)} in the data directory serves as well, "
        f"with the images and either NOAH's lists (annotations/test_meta.list and so on, from "
        f"data/few-shot of github.com/ZhangYuanhan-AI/NOAH) or {lists} "
        f"(github.com/KaiyangZhou/CoOp, DATASETS.md); then TFDS is not needed.",
        **fields,
    )


_NOT_COOPS_TEST = "read from TFDS, the test set is the official one, not that of CoOp and NOAH"

_TASKS = (
    _set(
        101,
        FewShot(
            "food101",
            held_out=200,
            folders=("food-101", "food101"),
            json="split_zhou_Food101.json",
            list_sizes=_sizes(50500, 20200, 30300),
        ),
        builder="food101",
        versions="2.*.*",
        splits={"train": "train", "test": "validation"},
        sizes={"train": 75750, "test": 25250},
        note=_NOT_COOPS_TEST,
    ),
    _set(
        196,
        FewShot(
            "stanford_cars",
            held_out=5,
            folders=("stanford_cars", "standford-cars"),  # the latter as NOAH spells it
            json="split_zhou_StanfordCars.json",
            list_sizes=_sizes(6509, 1635, 8041),
        ),
        builder="cars196",
        versions="2.*.*",
        splits={"train": "train", "test": "test"},
        sizes={"train": 8144, "test": 8041},
        dead="http://ai.stanford.edu/~jkrause/car196 and https://ai.stanford.edu/~jkrause/cars "
        "no longer answer",
        fetch="the published cars_train.tgz (979,269,282 bytes), cars_test.tgz (977,350,468 "
        "bytes), cars_test_annos_withlabels.mat and car_devkit.tgz (TFDS checks the SHA-256 of "
        "all four) from someone who has them",
    ),
    _set(
        102,
        FewShot(
            "oxford_flowers",
            held_out=4,
            folders=("oxford_flowers", "oxford-flowers102"),
            json="split_zhou_OxfordFlowers.json",
            list_sizes=_sizes(4093, 1633, 2463),
        ),
        builder="oxford_flowers102",
        versions="2.*.*",
        # The official train part has 10 images a class, too few for 16 shots.
        splits={"train": "train+validation", "test": "test"},
        sizes={"train": 2040, "test": 6149},
        note=_NOT_COOPS_TEST,
    ),
    _set(
        100,
        FewShot(
            "fgvc_aircraft",
            folders=("fgvc_aircraft", "fgvc-aircraft", "fgvc-aircraft-2013b/data"),
            list_sizes=_sizes(3334, 3333, 3333),
        ),
        builder="fgvc_aircraft",
        builder_module="fact_jax.data.aircraft",
        versions="1.*.*",
        splits={"train": "train", "val": "validation", "test": "test"},
        sizes=_sizes(3334, 3333, 3333),
    ),
    _set(
        37,
        FewShot(
            "oxford_pets",
            held_out=20,
            folders=("oxford_pets", "oxford-pets"),
            json="split_zhou_OxfordPets.json",
            list_sizes=_sizes(2944, 736, 3669),
        ),
        builder="oxford_iiit_pet",
        versions="4.*.*",
        splits={"train": "train", "test": "test"},
        sizes={"train": 3680, "test": 3669},
    ),
)

FEW_SHOT: dict[str, Task] = {task.name: task for task in _TASKS}
