"""All tasks by their names, and the source that each is read from: the only file that knows all."""

import dataclasses
import difflib
import re
from collections.abc import Iterable

from fact_jax.data.reader import TaskData
from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.csv_file import read_csv
from fact_jax.data.sources.few_shot_lists import find_lists, list_folders
from fact_jax.data.sources.folders import read_folder
from fact_jax.data.sources.lists import ListsSource
from fact_jax.data.sources.tfds import TfdsSource, open_tfds
from fact_jax.data.sources.vtab1k import find_copy, read_copy
from fact_jax.data.tables.fewshot import FEW_SHOT, PUBLISHED_SHOTS
from fact_jax.data.tables.offline import OFFLINE, OFFLINE_GROUPS
from fact_jax.data.tables.vtab import VTAB
from fact_jax.data.tasks import CSV, FEW_SHOT_STAGES, FOLDER, FOLDER_STAGES, FewShot, Task
from fact_jax.errors import UserError

_SHOTS_OF = (*FEW_SHOT, *OFFLINE)
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(VTAB),
    **{group: tuple(t.name for t in VTAB.values() if t.group == group) for group in OFFLINE_GROUPS},
    "offline": tuple(OFFLINE),
    **{f"offline_{group}": names for group, names in OFFLINE_GROUPS.items()},
}


def all_tasks() -> dict[str, Task]:
    """VTAB's tasks and the offline suite's, by name."""
    return {**VTAB, **OFFLINE}


def expand_groups(names: Iterable[str]) -> list[str]:
    """The names, each once, with the name of a group in `GROUPS` replaced by its tasks.

    'all' are VTAB-1K's 19, 'natural', 'specialized' and 'structured' its groups, 'offline' the
    offline suite, and 'offline_natural' and so on its groups.
    """
    return list(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))


def get_task(name: str) -> Task:
    """The task of this name; UserError with the nearest names if there is none.

    Few-shot tasks are named NAME_Kshot: food101_4shot. A folder of pictures is folder_NAME.
    """
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    if task := _few_shot_task(name) or _folder_task(name):
        return task
    if name.startswith((f"{FOLDER}_", f"{CSV}_")):
        raise UserError(
            f"Task {name!r}: the name of a folder or CSV file begins with a letter or digit and "
            "holds letters of ASCII, digits, '_', '-' and '.', since files are called after it. "
            "Rename it, or make a link of such a name to it."
        )
    published = [f"{name}_{shots}shot" for name in _SHOTS_OF for shots in PUBLISHED_SHOTS]
    near = difflib.get_close_matches(name, [*tasks, *published, *GROUPS], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"There is no task {name!r}.{hint} The tasks are: {', '.join(tasks)}; groups of them: "
        f"{', '.join(GROUPS)}; and NAME_Kshot, K at least 1, where NAME is one of "
        f"{', '.join(_SHOTS_OF)}; and folder_NAME (and folder_NAME_Kshot) for a folder of pictures "
        "in the data directory, and csv_NAME for its file NAME.csv."
    )


def _few_shot_task(name: str) -> Task | None:
    """The task called NAME_Kshot, None for another name; UserError if K is 0."""
    match = re.fullmatch(
        r"((?:folder|csv)_[A-Za-z0-9][\w.-]*|\w+)_(0|[1-9]\d{0,3})shot", name, re.ASCII
    )
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
    few_shot = dataclasses.replace(whole.few_shot or FewShot(), shots=shots)
    return dataclasses.replace(
        whole, name=name, group="fewshot", stages=FEW_SHOT_STAGES, few_shot=few_shot
    )


def _folder_task(name: str) -> Task | None:
    """The task folder_NAME or csv_NAME, None for another name; reading it gives the classes."""
    match = re.fullmatch(rf"({FOLDER}|{CSV})_([A-Za-z0-9][A-Za-z0-9_.-]*)", name)
    if match is None:
        return None
    place = f"{match[2]}.csv" if match[1] == CSV else match[2]
    return Task(name, "own", 0, FOLDER, "-", {}, {}, stages=FOLDER_STAGES, folder=place)


def source_type(task: Task, settings: DataSettings) -> type[ListsSource] | type[TfdsSource]:
    """The kind of source that a task is read from, found without reading it."""
    if task.folder:
        return ListsSource
    if settings.mock:
        return TfdsSource
    few, root = task.few_shot, settings.root
    files = any(list_folders(few, root)) if few else find_copy(task, root)
    return ListsSource if files else TfdsSource


def check_skipping(task: Task, settings: DataSettings) -> None:
    """UserError if damaged pictures are to be left out of a task whose source cannot do it."""
    if settings.skip_damaged and not source_type(task, settings).skips_damaged:
        raise UserError(
            f"Task {task.name}: config.skip_damaged is True, but only pictures in folders and "
            "lists can be left out, and this task has neither. Set it to False, or sweep the task "
            "apart."
        )


def open_task(task: Task, settings: DataSettings) -> TaskData:
    """Opens the task's data, and checks them against the task.

    They are read from its folder of pictures or its CSV file, from a folder with lists if there is
    one, else through TFDS. The `task` of the result has the classes and sizes of the data.

    Raises:
      UserError: unknown builder or version, missing data, or features, class counts or split
        sizes that do not match the task; or damaged pictures cannot be left out as asked.
    """
    check_skipping(task, settings)
    return open_files(task, settings) or TaskData(task, open_tfds(task, settings), settings)


def open_files(task: Task, settings: DataSettings) -> TaskData | None:
    """A task that is read from a folder of pictures; None if it is read through TFDS.

    Raises:
      UserError: no such folder, or lists that are not as they should be.
    """
    if task.folder:
        source = (read_csv if task.name.startswith(f"{CSV}_") else read_folder)(task, settings)
        sizes = {split: source.size(split) for split in source.splits}
        classes, several = len(source.class_names or ()), source.multi_label
        if several and task.few_shot:
            raise UserError(
                f"Task {task.name}: its pictures have several labels, so that there are no K "
                f"pictures a class. Name the task {task.dataset}."
            )
        opened = dataclasses.replace(task, num_classes=classes, sizes=sizes, multi_label=several)
        return TaskData(opened, source, settings)
    if settings.mock:
        return None
    lists = find_lists(task, settings.root)
    if lists is None and (copy := find_copy(task, settings.root)):
        lists = read_copy(task, copy)
    if lists is None:
        return None
    lists = lists.without_damaged() if settings.skip_damaged else lists
    # Pixels of files are not 0 and 1.
    return TaskData(dataclasses.replace(task, binary=False), lists, settings)
