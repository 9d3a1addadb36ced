"""The state of the data sets on this machine, and their preparation.

    python -m experiments.data --check [--tasks=dtd,svhn] [--data_dir=DIR]
    python -m experiments.data --prepare --tasks=dtd,food101_16shot --data_dir=DIR

Without --tasks, they are VTAB-1K's and the five few-shot sets at 16 shots (data that are ready for
16 shots are ready for fewer). Prints one line a task. Exits with 0 if all the tasks are ready, with
1 if one is not, with 2 for a wrong argument. Manual and dead sources: docs/data.md.
"""

import sys
from collections.abc import Sequence

from absl import flags
from rich.table import Table
from rich.text import Text

from fact_jax.cli import process
from fact_jax.cli.terminal import Console
from fact_jax.data import (
    VTAB,
    DataSettings,
    FewShotTask,
    Task,
    checks,
    get_task,
    lists,
    open_task,
    prepare,
)
from fact_jax.data.fewshot import FEW_SHOT
from fact_jax.data.fewshot_data import ListedData
from fact_jax.data.folders import REMEDY, FolderData
from fact_jax.data.source import TaskData, data_root, find_prepared
from fact_jax.data.tasks import FOLDER
from fact_jax.errors import UserError
from fact_jax.report.tables import print_table
from fact_jax.text import first_ten

_CHECK = flags.DEFINE_bool("check", True, "Show what is there (always done).")
_PREPARE = flags.DEFINE_bool("prepare", False, "Download and prepare what is missing, then show.")
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks; VTAB-1K and few-shot if not given.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory; TFDS's default if None.")

_FEW_SHOT = [f"{name}_16shot" for name in FEW_SHOT]
COLOURS = {"ready": "green", "missing": "yellow", "manual": "magenta"}


def inspect(task: Task, data_dir: str | None) -> tuple[str, str, str, str]:
    """State of a task's data: state, version used, examples in test, and what to know."""
    if task.builder == FOLDER:
        try:
            return _inspect_folder(open_task(task, DataSettings(data_dir)))
        except UserError as error:
            return "wrong", "-", "-", str(error)
    if isinstance(task, FewShotTask) and task.folders:
        try:
            found_lists = lists.find_lists(task, data_root(data_dir))
        except UserError as error:
            return "wrong", "-", "-", str(error)
        if found_lists:  # sizes are checked as they are read
            data = ListedData(task, DataSettings(data_dir), found_lists)
            if damaged := _damaged(data):
                return "wrong", found_lists.kind, "-", damaged
            test = str(len(found_lists.items["test"]))
            return "ready", found_lists.kind, test, f"read from the lists in {found_lists.folder}"
    try:
        if task.offline:
            found, _ = find_prepared(task, DataSettings(data_dir))
        else:
            found = prepare.find_builder(task, data_dir)
    except UserError as error:
        return "refused", "-", "-", str(error)
    mapped = f"in the place of {task.versions}: " if found.request != task.versions else ""
    if not found.ready:
        absent = prepare.missing_manual_files(task, found.builder)
        state = "dead" if task.dead else "manual" if absent else "missing"
        words = prepare.by_hand(task, found.builder).strip() or mapped + task.note
        return state, found.version, "-", words
    try:
        checks.check_features(task, found.builder)
        checks.check_sizes(task, found.builder)
    except UserError as error:
        return "wrong", found.version, "-", str(error)
    test = str(found.builder.info.splits[task.splits["test"]].num_examples)
    return "ready", found.version, test, mapped + task.note


def _inspect_folder(data: TaskData) -> tuple[str, str, str, str]:
    if damaged := _damaged(data):
        raise UserError(damaged)
    train = data.task.train_split(0, final=False)
    sizes = ", ".join(f"{split} {data.size(split)}" for split in (train, "val", "test"))
    words = f"{data.task.num_classes} classes; {sizes} pictures; {data.provenance['note']}"
    return "ready", data.provenance["used_version"], str(data.size("test")), words


def _damaged(data: TaskData) -> str:
    """Which pictures of a folder cannot be decoded; '' if all can."""
    reasons = data.damaged() if isinstance(data, FolderData) else {}
    if not reasons:
        return ""
    shown = first_ten([f"{path}: {why}" for path, why in reasons.items()])
    return f"{len(reasons)} pictures cannot be decoded: {shown}. {REMEDY}"


def show(tasks: Sequence[Task], data_dir: str | None, prepare_first: bool) -> bool:
    """Prints the table, after preparing what is missing if asked; whether all tasks are ready."""
    console, notes, states = Console(), {}, []
    if prepare_first:
        for task in tasks:
            if task.builder == FOLDER or task.offline or inspect(task, data_dir)[0] == "ready":
                continue
            console.print(f"Preparing {task.builder} for {task.name} ...")
            try:
                prepare.prepare(task, data_dir)
            except UserError as error:  # the other tasks can still be prepared
                notes[task.name] = str(error)
    table = Table(*("task", "builder", "wanted", "used", "state", "test", "expected"))
    for task in tasks:
        state, used, test, words = inspect(task, data_dir)
        states.append(state)
        coloured = Text(state, COLOURS.get(state, "red"))
        expected = str(task.test_size or "-")
        table.add_row(task.name, task.builder, task.versions, used, coloured, test, expected)
        if words:
            notes.setdefault(task.name, words)
    print_table(console, table)
    for words in dict.fromkeys(notes.values()):  # what holds for many tasks is said once
        names = ", ".join(name for name, note in notes.items() if note == words)
        console.print(f"{names}: {words}", highlight=False, soft_wrap=True)
    console.print(f"{states.count('ready')} of {len(tasks)} tasks are ready.")
    return set(states) == {"ready"}


def main() -> None:
    tasks = [get_task(name) for name in _TASKS.value or [*VTAB, *_FEW_SHOT]]
    sys.exit(0 if show(tasks, _DATA_DIR.value, _PREPARE.value) else 1)


def start() -> None:
    """Runs the command with the arguments of this process."""
    process.run(main, __doc__)
