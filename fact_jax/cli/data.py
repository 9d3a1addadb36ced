"""The state of the data sets on this machine, and their preparation.

    python -m experiments.data --check [--tasks=dtd,svhn] [--data_dir=DIR]
    python -m experiments.data --prepare --tasks=dtd,food101_16shot --data_dir=DIR
    python -m experiments.data --export --format vtab-1k --tasks=dtd --data_dir=DIR --out=OUT

Without --tasks, they are VTAB-1K's and the five few-shot sets at 16 shots (data that are ready for
16 shots are ready for fewer). --tasks=offline are the ten tasks that come with the package. Prints
one line a task. Exits with 0 if all the tasks are ready, with 1 if one is not, with 2 for a wrong
argument. Manual and dead sources: docs/data.md. --export writes OUT/vtab-1k/TASK for the programs
that read that folder; it takes VTAB-1K's and the offline tasks.
"""

import sys
from collections.abc import Sequence

from absl import flags
from etils import epath
from rich.table import Table
from rich.text import Text

from fact_jax.cli.terminal import Console
from fact_jax.data import VTAB, DataSettings, Task, TaskData, get_task, open_task
from fact_jax.data.catalog import expand_groups, open_files
from fact_jax.data.sources import prepare, tfds, vtab1k
from fact_jax.data.tables.fewshot import FEW_SHOT
from fact_jax.errors import UserError
from fact_jax.report.terminal import print_table
from fact_jax.text import count_of, first_ten

COLOURS = {"ready": "green", "missing": "yellow", "manual": "magenta"}


def define_flags() -> None:
    """Defines --check, --prepare, --export and their options."""
    flags.DEFINE_bool("check", True, "Show what is there (always done).")
    flags.DEFINE_bool("prepare", False, "Download and prepare what is missing, then show.")
    flags.DEFINE_list("tasks", None, "Names of tasks; VTAB-1K and few-shot if not given.")
    flags.DEFINE_bool("export", False, "Write the tasks as files to --out, and do no more.")
    flags.DEFINE_enum("format", vtab1k.FORMAT, [vtab1k.FORMAT], "Layout of these files.")
    flags.DEFINE_string("out", None, "Directory in which --export makes the folder vtab-1k.")
    flags.DEFINE_string("data_dir", None, "TFDS's data directory; TFDS's default if None.")


def inspect(task: Task, data_dir: str | None) -> tuple[str, str, str, str]:
    """State of a task's data: state, version used, number of test examples, and a note."""
    settings = DataSettings(data_dir)
    try:
        if data := open_files(task, settings):
            return _inspect_files(data)
    except UserError as error:
        return "wrong", "-", "-", str(error)
    try:
        if task.offline:
            lookup = tfds.find_bundled(task, settings)
        else:
            lookup = prepare.find_builder(task, data_dir)
    except UserError as error:
        return "refused", "-", "-", str(error)
    mapped = f"in the place of {task.versions}: " if lookup.request != task.versions else ""
    if not lookup.ready:
        absent = prepare.missing_manual_files(task, lookup.builder)
        state = "dead" if task.dead else "manual" if absent else "missing"
        words = prepare.by_hand(task, lookup.builder).strip() or mapped + task.note
        return state, lookup.version, "-", words
    try:
        tfds.check_features(task, lookup.builder)
        tfds.check_sizes(task, lookup.builder)
    except UserError as error:
        return "wrong", lookup.version, "-", str(error)
    test = str(lookup.builder.info.splits[task.splits["test"]].num_examples)
    return "ready", lookup.version, test, mapped + task.note


def _inspect_files(data: TaskData) -> tuple[str, str, str, str]:
    task, record = data.task, data.provenance
    if damaged := data.damaged():
        shown = first_ten([f"{path}: {why}" for path, why in damaged.items()])
        words = (
            f"{count_of(len(damaged), 'picture')} cannot be decoded: {shown}. {data.source.remedy}"
        )
        return "wrong", "-" if task.folder else record["used_version"], "-", words
    if not task.folder:
        words = f"read from the lists in {record['data_dir']}"
        words += f"; {record['note']}" if record["note"] else ""
    else:
        train = task.train_split(0, final=False)
        list(data.view.records(train, 1))  # fails if a class has fewer pictures than shots
        sizes = ", ".join(f"{split} {data.size(split)}" for split in (train, "val", "test"))
        words = f"{task.num_classes} classes; {sizes} pictures; {record['note']}"
    return "ready", record["used_version"], str(data.size("test")), words


def show(tasks: Sequence[Task], data_dir: str | None, prepare_first: bool) -> bool:
    """Prints the tasks' states, after preparing missing ones if asked. Whether all are ready."""
    console, notes, states = Console(), {}, []
    if prepare_first:
        for task in tasks:
            if task.folder or task.offline or inspect(task, data_dir)[0] == "ready":
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
    for words in dict.fromkeys(notes.values()):  # a note on many tasks is printed once
        names = ", ".join(name for name, note in notes.items() if note == words)
        console.print(f"{names}: {words}", highlight=False, soft_wrap=True)
    console.print(f"{states.count('ready')} of {len(tasks)} tasks are ready.")
    return set(states) == {"ready"}


def export(tasks: Sequence[Task], data_dir: str | None, out: str | None) -> None:
    """Writes the vtab-1k folder of the tasks. Raises UserError without `out` or a task's data."""
    if not out:
        raise UserError("--export needs --out, the directory in which to make the folder vtab-1k.")
    for task in tasks:
        data, folder = open_task(task, DataSettings(data_dir)), epath.Path(out) / vtab1k.FORMAT
        vtab1k.write_copy(data.task, data.source, folder / task.name)
        Console().print(f"{task.name}: {folder / task.name}", highlight=False, soft_wrap=True)


def main() -> None:
    options = flags.FLAGS
    default = [*VTAB] if options.export else [*VTAB, *(f"{name}_16shot" for name in FEW_SHOT)]
    tasks = [get_task(name) for name in expand_groups(options.tasks or default)]
    if options.export:
        export(tasks, options.data_dir, options.out)
    elif not show(tasks, options.data_dir, options.prepare):
        sys.exit(1)
