"""All methods on the ten tasks of the offline suite, as a committed result that goes on.

    python -m benchmarks.study [--part main|leaders] [--minutes M] [--share 1/2]
    python -m benchmarks.study --part dinov2 --weights dinov2_small_f16.safetensors

Works through the cells of `configs/study.py` in an order that is useful wherever it is cut, and
leaves out those that the record already has with the same settings, weights and pictures. The
record is written after every cell, so that the program may be killed at any time: the next run, in
another clone too, goes on from the record. A training that was under way goes on from its
checkpoint in --workdir.

For each method and task, the learning rate is chosen on val200 with the first seed alone, and kept
for the other seeds. The test split is only measured on. The part `leaders` needs the first seed of
all methods: the leaders are the best by their means on val200. `all` is every part, but `dinov2`
only with its --weights. Two processes with --share 1/2 and
--share 2/2 divide the tasks of each method, and write into one record.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.accuracy import cells, study_record
from benchmarks.accuracy.rounding import Tested
from benchmarks.accuracy.study_after import AFTER, checksum, sources
from benchmarks.accuracy.study_arms import leaders_of
from benchmarks.accuracy.study_plan import PARTS, Item, cell_of, digest, items, planned
from benchmarks.common import option_parser
from configs import study
from fact_jax.cli.process import prepare_process
from fact_jax.errors import UserError
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runner import Outcome, Runner
from fact_jax.sweep.runs import Failure, Run
from fact_jax.sweep.settings import GRID
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer
from fact_jax.sweep.versions import environment

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
      forms: the configs by their forms; for the leaders, also those of the main part.
      leaders: the methods of the part of that name.
    """

    def __init__(
        self,
        path: Path,
        workdir: Path,
        command: str,
        forms: dict[str, ConfigDict],
        leaders: Sequence[str] = (),
    ) -> None:
        self.command, self.forms, self.leaders = command, forms, leaders
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

    def _chosen(self, item: Item, record: dict[str, Any]) -> dict[str, tuple[float, ...]]:
        """Gives what the first seed has chosen, by the names of the lists that it chose from.

        The forms of `AS_MAIN` have the learning rate of the main part. What the cell chooses
        itself is left out. Raises LookupError if the first seed has no result.
        """
        there, chosen = study_record.by_key(record), {}
        first = item._replace(seed=study.SEEDS[0])
        for several, name in GRID.items():
            source = first
            if name == "learning_rate" and item.form in study.AS_MAIN:
                source = first._replace(part="main", form="main")
            if item != source and self.forms[source.form][item.method].get(several):
                chosen[several] = (there[source.key][name],)
        return chosen

    def _sources(self, item: Item) -> list[Item]:
        """The trained cells that an item is made of without training."""
        return sources(item, self.leaders, self.forms["main"].seeds)

    def todo(self, item: Item) -> tuple[Cell | None, str] | None:
        """The cell of an item, and its checksum; None if the record has it, or cannot have it.

        An item that is not trained has no cell. It waits until its sources are up to date.
        """
        record = study_record.read(self._path)
        there = study_record.by_key(record)
        cell = None
        try:
            if item.form in AFTER:
                of = self._sources(item)
                if any(self.todo(source) for source in of):
                    return None
                made_of = [there[source.key]["digest"] for source in of]
                made = checksum(item, made_of)
            else:
                cell = cell_of(item, self.forms[item.form], self._chosen(item, record))
                trainer = self.runner(item.form).trainer
                fingerprint = str(trainer.feed.data(item.task).provenance["fingerprint"])
                made = digest(cell, trainer.weights_sha256, fingerprint)
        except LookupError:
            return None
        done = (there.get(item.key), study_record.by_key(record, "failures").get(item.key))
        if any(old is not None and old["digest"] == made for old in done):
            return None
        return cell, made

    def _train(self, item: Item, cell: Cell) -> Outcome:
        """Trains a cell, or takes its result from the work directory."""
        (outcome,) = self.runner(item.form).run([cell], {})
        return outcome

    def _derive(self, item: Item) -> Outcome:
        """Makes an item of trained cells, which train again if the work directory lacks them."""
        record, tested = study_record.read(self._path), []
        for source in self._sources(item):
            cell = cell_of(source, self.forms[source.form], self._chosen(source, record))
            outcome = self._train(source, cell)
            if not isinstance(outcome, Result):
                return outcome
            tested.append(Tested.of(outcome, self._workdir / source.form))
        began = time.monotonic()
        made = AFTER[item.form](tested)
        return dataclasses.replace(
            tested[0].result,
            accuracy=made.accuracy,
            num_factors=made.numbers,
            factor_file_bytes=made.bytes,
            environment=environment(),
            **{"selection": {}, "grid_size": 1, "seconds": {"cell": time.monotonic() - began}},
        )

    def run(self, item: Item) -> str:
        """Runs an item if the record does not have it; a line about it, empty if it has."""
        if (todo := self.todo(item)) is None:
            return ""
        cell, made = todo
        outcome = self._derive(item) if cell is None else self._train(item, cell)
        with study_record.changed(self._path) as record:
            if self.command not in record["commands"]:
                record["commands"].append(self.command)
            if isinstance(outcome, Failure):
                study_record.add_failure(record, item, outcome.error, made)
                return f"failed: {outcome.error}"
            study_record.add_result(record, item, outcome, made)
        rate = f"rate {outcome.learning_rate:g}"
        return f"{outcome.accuracy:5.1f} %, {rate}, {outcome.seconds['cell']:.0f} s"


def share_of(all_items: Iterable[Item], share: str) -> list[Item]:
    """The items of the tasks that a share such as "1/2" has: every second task of each method.

    Raises:
      SystemExit: the share is not one of so many.
    """
    number, _, count = share.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise SystemExit(f"--share is {share!r}; expected one such as 1/2 or 2/2.")
    listed = list(all_items)
    tasks = list(dict.fromkeys(item.task for item in listed))
    return [i for i in listed if tasks.index(i.task) % int(count) == int(number) - 1]


def configs_of(
    part: str, leaders: Sequence[str], args: argparse.Namespace
) -> tuple[dict[str, ConfigDict], str]:
    """The configs of a part's forms, changed as the options say, and these as words.

    Raises:
      SystemExit: an option names a method that the part does not have.
    """
    forms, words, all_known = {}, "", set()
    for form, config in planned(part, leaders).items():
        known = config.methods.split(",")
        all_known |= set(known)
        words = cells.change(config, args, *CHANGES, *(["weights"] if part == "dinov2" else []))
        config.methods = ",".join(name for name in config.methods.split(",") if name in known)
        if config.methods:
            forms[form] = config
    if unknown := sorted({*(args.methods or "").split(",")} - {"", *all_known}):
        raise SystemExit(
            f"--methods has {', '.join(unknown)}; part {part} has {', '.join(sorted(all_known))}."
        )
    return forms, words


def run_part(part: str, args: argparse.Namespace, began: float) -> bool:
    """Works through the cells of a part; whether it came to the end of them in time."""
    leaders: list[str] = []
    if part == "leaders":
        leaders = leaders_of(study_record.read(args.out))
        if not leaders:
            print("The leaders are not known before the main part has its first seed.")
            return True
    forms, words = configs_of(part, leaders, args)
    wanted = share_of(items(part, forms), args.share)
    if part == "leaders":
        forms |= configs_of("main", (), args)[0]
    command = f"python -m benchmarks.study --part {part}{words}"
    work = Study(args.out, args.workdir, command, forms, leaders)
    for number, item in enumerate(wanted, 1):
        minutes = (time.monotonic() - began) / 60
        if minutes > args.minutes:
            print(f"Stopped after {minutes:.0f} minutes. The same command goes on.")
            return False
        if said := work.run(item):
            name = f"{item.arm} {item.task} seed {item.seed}"
            print(f"{minutes:6.1f} min [{number}/{len(wanted)}] {name}: {said}", flush=True)
    there = study_record.by_key(study_record.read(args.out))
    found = sum(item.key in there for item in wanted)
    print(f"{part}: {found} of the {len(wanted)} cells asked for are in {args.out}.")
    return True


def main() -> None:
    parser = option_parser(__doc__, out=study_record.RECORD)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="default: all")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after them")
    parser.add_argument("--share", default="1/1", help="such as 1/2: the first half of the tasks")
    where = "checkpoints and factor files; default: runs/study"
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"), help=where)
    cells.add_changes(parser, *CHANGES, "weights")
    a = parser.parse_args()
    if (a.epochs or a.seeds) and a.out == study_record.RECORD:
        parser.error(
            "--epochs and --seeds make other cells than the committed record's: give --out"
        )
    prepare_process()
    began = time.monotonic()
    parts = [part for part in PARTS if a.part == part]
    if a.part == "all":
        parts = [part for part in PARTS if part != "dinov2" or a.weights]
    try:
        for part in parts:
            if not run_part(part, a, began):
                return
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
