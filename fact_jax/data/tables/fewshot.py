"""The sets of pictures that few-shot tasks draw from as a table of data.

Five fine-grained sets, on which NOAH and FacT report accuracy against shots. Sources: NOAH e9c55f3
(lists, sizes of val and test), CoOp's DATASETS.md (layout of folders, sizes of its train lists),
TFDS 4.9.10 (the official splits).
"""

from fact_jax.data.tasks import FewShot, Task

PUBLISHED_SHOTS = (1, 2, 4, 8, 16)

_NOT_COOPS_TEST = "read from TFDS, the test set is the official one, not that of CoOp and NOAH"
_AIRCRAFT = {"train": 3334, "val": 3333, "test": 3333}

# Name, group, classes; builder and versions.
_TASKS = (
    Task(
        *("food101", "fewshot", 101, "food101", "2.*.*"),
        splits={"train": "train", "test": "validation"},
        sizes={"train": 75750, "test": 25250},
        few_shot=FewShot(
            held_out=200,
            folders=("food-101", "food101"),
            json="split_zhou_Food101.json",
            list_sizes={"train": 50500, "val": 20200, "test": 30300},
        ),
        note=_NOT_COOPS_TEST,
    ),
    Task(
        *("stanford_cars", "fewshot", 196, "cars196", "2.*.*"),
        splits={"train": "train", "test": "test"},
        sizes={"train": 8144, "test": 8041},
        few_shot=FewShot(
            held_out=5,
            folders=("stanford_cars", "standford-cars"),  # the latter as NOAH spells it
            json="split_zhou_StanfordCars.json",
            list_sizes={"train": 6509, "val": 1635, "test": 8041},
        ),
        dead="http://ai.stanford.edu/~jkrause/car196 and https://ai.stanford.edu/~jkrause/cars "
        "no longer answer",
        fetch="the published cars_train.tgz (979,269,282 bytes), cars_test.tgz (977,350,468 "
        "bytes), cars_test_annos_withlabels.mat and car_devkit.tgz (TFDS checks the SHA-256 of "
        "all four) from someone who has them",
    ),
    Task(
        *("oxford_flowers", "fewshot", 102, "oxford_flowers102", "2.*.*"),
        # The official train part has 10 images a class, too few for 16 shots.
        splits={"train": "train+validation", "test": "test"},
        sizes={"train": 2040, "test": 6149},
        few_shot=FewShot(
            held_out=4,
            folders=("oxford_flowers", "oxford-flowers102"),
            json="split_zhou_OxfordFlowers.json",
            list_sizes={"train": 4093, "val": 1633, "test": 2463},
        ),
        note=_NOT_COOPS_TEST,
    ),
    Task(
        *("fgvc_aircraft", "fewshot", 100, "fgvc_aircraft", "1.*.*"),
        splits={"train": "train", "val": "validation", "test": "test"},
        sizes=_AIRCRAFT,
        few_shot=FewShot(
            folders=("fgvc_aircraft", "fgvc-aircraft", "fgvc-aircraft-2013b/data"),
            list_sizes=_AIRCRAFT,
        ),
        builder_module="fact_jax.data.aircraft",
    ),
    Task(
        *("oxford_pets", "fewshot", 37, "oxford_iiit_pet", "4.*.*"),
        splits={"train": "train", "test": "test"},
        sizes={"train": 3680, "test": 3669},
        few_shot=FewShot(
            held_out=20,
            folders=("oxford_pets", "oxford-pets"),
            json="split_zhou_OxfordPets.json",
            list_sizes={"train": 2944, "val": 736, "test": 3669},
        ),
    ),
)

FEW_SHOT: dict[str, Task] = {task.name: task for task in _TASKS}
