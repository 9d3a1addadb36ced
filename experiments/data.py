"""The state of the data sets on this machine, and their preparation.

    python -m experiments.data --check [--tasks=dtd,svhn] [--data_dir=DIR]
    python -m experiments.data --prepare --tasks=dtd,svhn --data_dir=DIR

Prints one line a task. Exits with 0 if all the tasks are ready, with 1 if one is not, with 2 for
a wrong argument. What to do about manual and dead sources: docs/data.md.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from fact_jax.data import VTAB, Task, checks, get_task, prepare
from fact_jax.errors import UserError

_CHECK = flags.DEFINE_bool("check", True, "Show what is there.")
_PREPARE = flags.DEFINE_bool("prepare", False, "Download and prepare what is missing, then show.")
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks; all 19 of VTAB-1K if not given.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's data directory; TFDS's default if None.")

COLOURS = {"ready": "green", "missing": "yellow", "manual": "magenta"}


def inspect(task: Task, data_dir: str | None) -> tuple[str, str, str, str]:
    """State of a task's data: state, version used, examples in test, and what to know."""
    try:
        found = prepare.find_builder(task, data_dir)
    except UserError as error:
        return "refused", "-", "-", str(error)
    mapped = f"in the place of {task.versions}: " if found.request != task.versions else ""
    if not found.ready:
        absent = prepare.missing_manual_files(task, found.builder)
        state = "dead" if task.dead else "manual" if absent else "missing"
        words = f"needs {', '.join(absent)}" if absent else task.dead or mapped + task.note
        return state, found.version, "-", words
    test = str(found.builder.info.splits[task.splits["test"]].num_examples)
    try:
        checks.check_features(task, found.builder)
        checks.check_sizes(task, found.builder)
    except UserError as error:
        return "wrong", found.version, test, str(error)
    return "ready", found.version, test, mapped + task.note


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"Unexpected arguments {argv[1:]}: tasks are given by --tasks=NAME,NAME.")
    tasks = [get_task(name) for name in _TASKS.value or VTAB]
    logging.set_verbosity(logging.WARNING)  # TFDS tells every search in vain
    console, failures = Console(width=max(Console().width, 110)), {}
    if _PREPARE.value:
        for task in tasks:
            console.print(f"Preparing {task.builder} for {task.name} ...")
            try:
                prepare.prepare(task, _DATA_DIR.value)
            except UserError as error:  # the other tasks can still be prepared
                failures[task.name] = str(error)
    table = Table(*("task", "builder", "wanted", "used", "state", "test", "expected"))
    states, notes = [], {}
    for task in tasks:
        state, used, test, words = inspect(task, _DATA_DIR.value)
        states.append(state)
        colour = COLOURS.get(state, "red")
        table.add_row(
            *(task.name, task.builder, task.versions, used, f"[{colour}]{state}[/]", test),
            str(task.test_size),
        )
        if words:
            notes[task.name] = words
    console.print(table)
    for name, words in {**notes, **failures}.items():
        console.print(f"{name}: {words}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{states.count('ready')} of {len(tasks)} tasks are ready.")
    return 0 if set(states) == {"ready"} else 1


def run(argv: Sequence[str]) -> int:
    """`main`, with a UserError as one paragraph on stderr and status 2."""
    try:
        return main(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    app.run(run)
