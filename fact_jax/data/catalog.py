"""All tasks by their names, and the source that each is read from: the only file that knows all."""

import dataclasses
import difflib
import re
from typing import Any

from fact_jax.data.reader import TaskData
from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.few_shot_lists import find_lists
from fact_jax.data.sources.folders import read_folder
from fact_jax.data.sources.lists import Lists, ListsSource, without_damaged
from fact_jax.data.sources.tfds import open_tfds
from fact_jax.data.sources.vtab1k import find_copy
from fact_jax.data.tables.fewshot import FEW_SHOT, PUBLISHED_SHOTS
from fact_jax.data.tables.offline import OFFLINE
from fact_jax.data.tables.vtab import VTAB
from fact_jax.data.tasks import FEW_SHOT_STAGES, FOLDER, FOLDER_STAGES, FewShot, Task
from fact_jax.errors import UserError

_SHOTS_OF = (*FEW_SHOT, *OFFLINE)


def all_tasks() -> dict[str, Task]:
    """VTAB's tasks and the offline suite's, by name."""
    return {**VTAB, **OFFLINE}


def get_task(name: str) -> Task:
    """The task of this name; UserError with the nearest names if there is none.

    Few-shot tasks are named NAME_Kshot: food101_4shot. A folder of pictures is folder_NAME.
    """
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    if task := _few_shot_task(name) or _folder_task(name):
        return task
    if name.startswith(f"{FOLDER}_"):
        raise UserError(
            f"Task {name!r}: the name of a folder begins with a letter or digit and holds letters "
            "of ASCII, digits, '_', '-' and '.', since files are called after it. Rename it, or "
            "make a link of such a name to it."
        )
    published = [f"{name}_{shots}shot" for name in _SHOTS_OF for shots in PUBLISHED_SHOTS]
    near = difflib.get_close_matches(name, [*tasks, *published], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"There is no task {name!r}.{hint} The tasks are: {', '.join(tasks)}; and NAME_Kshot, K at "
        f"least 1, where NAME is one of {', '.join(_SHOTS_OF)}; and folder_NAME (and "
        "folder_NAME_Kshot) for a folder of pictures in the data directory."
    )


def _few_shot_task(name: str) -> Task | None:
    """The task called NAME_Kshot, None for another name; UserError if K is 0."""
    match = re.fullmatch(r"(folder_[A-Za-z0-9][\w.-]*|\w+)_(0|[1-9]\d{0,3})shot", name, re.ASCII)
    if match is None:
        return None
    dataset, shots = match[1], int(match[2])
    whole = FEW_SHOT.get(dataset) or OFFLINE.get(dataset) or _folder_task(dataset)
    if whole is None:
        return None
    if shots < 1:
        raise UserError(f"Task {name}: the number of shots must be at least 1.")
    if whole.offline:
        sizes = {"train": 800, "val": 200, "test": whole.test_size}
        splits = {"train": "train", "val": "validation", "test": "test"}
        whole = dataclasses.replace(whole, splits=splits, sizes=sizes)
    few_shot = dataclasses.replace(whole.few_shot or FewShot(dataset), shots=shots)
    return dataclasses.replace(
        whole, name=name, group="fewshot", stages=FEW_SHOT_STAGES, few_shot=few_shot
    )


def _folder_task(name: str) -> Task | None:
    """The task called folder_NAME, None for another name; its classes are found when it is read."""
    match = re.fullmatch(rf"{FOLDER}_([A-Za-z0-9][A-Za-z0-9_.-]*)", name)
    if match is None:
        return None
    nothing: dict[str, Any] = {"num_classes": 0, "versions": "-", "splits": {}, "sizes": {}}
    return Task(name, "own", builder=FOLDER, stages=FOLDER_STAGES, folder=match[1], **nothing)


def open_task(task: Task, settings: DataSettings) -> TaskData:
    """Finds the task's data, and checks that they are what the task says.

    They are read from its folder of pictures, from a folder with lists if there is one, else
    through TFDS. The `task` of the result has the classes and sizes that were found.

    Raises:
      UserError: unknown builder or version, missing data, or features, class counts or split
        sizes that do not match the task.
    """
    return open_files(task, settings) or TaskData(task, open_tfds(task, settings), settings)


def open_files(task: Task, settings: DataSettings) -> TaskData | None:
    """A task that is read from a folder of pictures; None if it is read through TFDS.

    Raises:
      UserError: no such folder, or lists that are not as they should be.
    """
    lists: Lists | None
    if task.folder:
        lists = read_folder(task, settings)
        task = _with_sizes(task, lists)
    elif settings.mock:
        return None
    else:
        lists = find_lists(task, settings.root) or find_copy(task, settings.root)
        if lists is None:
            return None
        lists = without_damaged(lists) if settings.skip_damaged else lists
        task = dataclasses.replace(task, binary=False)  # files show what they hold
    return TaskData(task, ListsSource(task, lists), settings)


def _with_sizes(task: Task, lists: Lists) -> Task:
    """The task with the classes and sizes of its folder."""
    sizes = lists.sizes
    if task.few_shot is None:
        sizes["train+val"] = sizes["train"] + sizes["val"]
    return dataclasses.replace(task, num_classes=len(lists.class_names or ()), sizes=sizes)
