"""All methods on the ten tasks of the offline suite, as a committed result that goes on.

    python -m benchmarks.study [--part main] [--minutes M] [--share 1/2]

Works through the cells of `configs/study.py` in an order that is useful wherever it is cut, and
leaves out those that the record already has with the same settings, weights and pictures. The
record is written after every cell, so that the program may be killed at any time: the next run, in
another clone too, goes on from the record. A training that was under way goes on from its
checkpoint in --workdir.

For each method and task, the learning rate is chosen on val200 with the first seed alone, and kept
for the other seeds. The test split is only measured on. Two processes with --share 1/2 and
--share 2/2 divide the tasks of each method, and write into one record.
"""

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.accuracy import cells, study_record
from benchmarks.accuracy.study_plan import PARTS, Item, cell_of, digest, items
from benchmarks.common import option_parser
from configs import study
from fact_jax.cli.process import prepare_process
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Failure, Run
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer

CHANGES = ("tasks", "methods", "seeds", "epochs")


class Lines:
    """Prints the notes of the runner; its epochs are too many to print."""

    def start(self, runs: list[Run], epochs: int) -> None:
        """Ignores the start of a training."""

    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None:
        """Ignores an epoch."""

    def note(self, text: str) -> None:
        """Prints a note."""
        print(text, flush=True)

    def waiting(self) -> None:
        """Ignores that another process is at work."""


class Study:
    """Runs items, and keeps their results in the record at `path`.

    Attributes:
      command: what is written into the record's list of commands.
      forms: the configs by their forms.
    """

    def __init__(
        self, path: Path, workdir: Path, command: str, forms: dict[str, ConfigDict]
    ) -> None:
        self.command, self.forms = command, forms
        self._path, self._workdir, self._lines = path, workdir, Lines()
        self._trainers: dict[tuple[Any, ...], Trainer] = {}
        self._runners: dict[str, Runner] = {}

    def runner(self, form: str) -> Runner:
        """The runner of a form. Forms of one network share its programs."""
        if form not in self._runners:
            sweep = read_settings(self.forms[form])
            network = sweep.run.variant, sweep.run.image_size, sweep.weights
            if network not in self._trainers:
                self._trainers[network] = Trainer(sweep, self._lines)
            trainer, store = self._trainers[network], Store(self._workdir / form, self._lines.note)
            self._runners[form] = Runner(sweep, store, self._lines, trainer=trainer)
        return self._runners[form]

    def _rate(self, item: Item, record: dict[str, Any]) -> float | None:
        """The learning rate that the first seed has chosen; None for the first seed itself.

        Raises LookupError if the first seed has no result.
        """
        first = item._replace(seed=self.forms[item.form].seeds[0])
        if item == first:
            return None
        rate: float = study_record.by_key(record)[first.key]["learning_rate"]
        return rate

    def todo(self, item: Item) -> tuple[Cell, str] | None:
        """The cell of an item, and its checksum; None if the record has it, or cannot have it."""
        record = study_record.read(self._path)
        try:
            rate = self._rate(item, record)
        except LookupError:
            return None
        cell, trainer = cell_of(item, self.forms[item.form], rate), self.runner(item.form).trainer
        fingerprint = str(trainer.feed.data(item.task).provenance["fingerprint"])
        checksum = digest(cell, trainer.weights_sha256, fingerprint)
        done = (study_record.by_key(record, of).get(item.key) for of in ("cells", "failures"))
        if any(old is not None and old["digest"] == checksum for old in done):
            return None
        return cell, checksum

    def run(self, item: Item) -> str:
        """Runs an item if the record does not have it; a line about it, empty if it has."""
        if (todo := self.todo(item)) is None:
            return ""
        cell, checksum = todo
        (outcome,) = self.runner(item.form).run([cell], {})
        with study_record.changed(self._path, self._workdir / "record.lock") as record:
            if self.command not in record["commands"]:
                record["commands"].append(self.command)
            if isinstance(outcome, Failure):
                study_record.add_failure(record, item, outcome.error, checksum)
                return f"failed: {outcome.error}"
            study_record.add_result(record, item, outcome, checksum)
        rate = f"rate {outcome.learning_rate:g}"
        return f"{outcome.accuracy:5.1f} %, {rate}, {outcome.seconds['cell']:.0f} s"


def share_of(all_items: Iterable[Item], share: str) -> list[Item]:
    """The items of the tasks that a share such as "1/2" has: every second task of each method."""
    number, _, count = share.partition("/")
    listed = list(all_items)
    tasks = list(dict.fromkeys(item.task for item in listed))
    return [i for i in listed if tasks.index(i.task) % int(count) == int(number) - 1]


def configs_of(part: str, args: argparse.Namespace) -> tuple[dict[str, ConfigDict], str]:
    """The configs of a part's forms, changed as the options say, and these as words."""
    forms, words = {}, ""
    for form in PARTS[part]:
        config = study.get_config(form)
        known = config.methods.split(",")
        words = cells.change(config, args, *CHANGES)
        chosen = [name for name in config.methods.split(",") if name in known]
        config.methods = ",".join(chosen)
        if chosen:
            forms[form] = config
    return forms, words


def main() -> None:
    parser = option_parser(__doc__, out=study_record.RECORD)
    parser.add_argument("--part", choices=list(PARTS), default="main")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after them")
    parser.add_argument("--share", default="1/1", help="such as 1/2: the first half of the tasks")
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"))
    cells.add_changes(parser, *CHANGES)
    a = parser.parse_args()
    prepare_process()
    began = time.monotonic()
    forms, words = configs_of(a.part, a)
    work = Study(a.out, a.workdir, f"python -m benchmarks.study --part {a.part}{words}", forms)
    wanted = share_of(items(a.part, forms), a.share)
    for number, item in enumerate(wanted, 1):
        minutes = (time.monotonic() - began) / 60
        if minutes > a.minutes:
            print(f"Stopped after {minutes:.0f} minutes. The same command goes on.")
            return
        if said := work.run(item):
            name = f"{item.arm} {item.task} seed {item.seed}"
            print(f"{minutes:6.1f} min [{number}/{len(wanted)}] {name}: {said}", flush=True)
    print(f"The record has all {len(wanted)} cells of this share, but for failures: {a.out}.")


if __name__ == "__main__":
    main()
