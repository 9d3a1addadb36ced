"""Runs the cells of a plan, whatever becomes of some of them, beside others that do the same."""

import gc
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fact_jax.backbone.config import get_variant
from fact_jax.data import get_task
from fact_jax.data.sources.lists import OWN
from fact_jax.errors import UserError
from fact_jax.sweep.faults import no_space, out_of_memory
from fact_jax.sweep.group import Group, batches
from fact_jax.sweep.packing import free_programs
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.record import store_failure, stored_result
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Failure, Progress, candidates
from fact_jax.sweep.settings import SweepSettings
from fact_jax.sweep.store import Store, Unwritable
from fact_jax.sweep.trainer import Trainer
from fact_jax.training.checkpoint import UnreadableCheckpoint
from fact_jax.training.mesh import agree
from fact_jax.training.metrics import MULTI_LABEL, SINGLE_LABEL

POLL = 2.0  # seconds between looks at what other runs do

Outcome = Result | Failure
Kind = tuple[Any, ...]


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


LESS_MEMORY = (
    "--config.remat=block, a smaller --config.batch_size or --config.eval_batch_size, or "
    "--config.dtype=bfloat16"
)


def _advised(error: Exception, cell: Cell) -> Exception:
    """The error of a cell that ran alone; for want of memory, with the settings that need less."""
    if not out_of_memory(error):
        return error
    width = get_variant(cell.settings.variant).width
    sizes = {name: getattr(cell.method, name, 0) for name in ("rank", "width", "num_tokens")}
    large = [
        f"a smaller --config.{cell.method_name}.{name} (it is {size}, and the ViT's width {width})"
        for name, size in sizes.items()
        if size > width
    ]
    advised = UserError(
        f"One run alone needs more memory than there is ({_one_line(error)}). "
        f"Try {', '.join([*large, LESS_MEMORY])}."
    )
    advised.__cause__ = error
    return advised


def check_measure(cell: Cell, multi_label: bool) -> None:
    """Raises UserError if candidates are to be chosen by a measure that the task does not have."""
    measures = MULTI_LABEL if multi_label else SINGLE_LABEL
    if (chosen := cell.settings.select_by) and chosen not in measures:
        several = "several labels" if multi_label else "one class"
        raise UserError(
            f"config.select_by is {chosen!r}, but pictures of {cell.task} have {several}; expected "
            f"{' or '.join(measures)}, or empty for {measures[0]}."
        )


def _kind(cell: Cell, multi_label: bool = False) -> Kind:
    """Cells of one kind can train in one program, epoch by epoch.

    `multi_label`: whether the task's examples have several labels.
    """
    s = cell.settings
    left_out = (s.dropout_rate == 0, s.drop_path_rate == 0)
    # Tasks that learn a dictionary train with each other and with nobody else.
    shared = (cell.together, cell.seed) if cell.together else bool(s.shared)
    program = cell.method, cell.recipe, left_out, shared, s.class_weights, multi_label
    return *program, s.epochs, s.eval_every, s.augment, s.start_ranks, s.round_epochs


def _check_together(kinds: Sequence[Sequence[Cell]]) -> None:
    """Raises UserError if tasks that are to learn a dictionary together cannot train together."""
    first: dict[Any, Cell] = {}
    for cells in kinds:
        cell = cells[0]
        if not cell.together:
            continue
        other = first.setdefault((cell.method_name, cell.seed), cell)
        if other is not cell:
            raise UserError(
                f"{other.name} and {cell.name} are to learn a dictionary together, and train in "
                "different ways: one has several labels an image, or other settings by task "
                f"(config.{cell.method_name}.per_task). Give them the same settings, or one "
                "dictionary each."
            )


class Runner:
    """A sweep's cells, its work directory, and the trainer of its groups.

    ``rerun(cell name)`` is the command that a failure's record names. ``failed_before`` says of
    cells when they failed last: those that failed since then are not tried again. Of cells that it
    does not name this is looked up when they are to run.
    """

    def __init__(
        self,
        sweep: SweepSettings,
        store: Store,
        progress: Progress,
        rerun: Callable[[str], str] = lambda name: "",
        trainer: Trainer | None = None,
        failed_before: Mapping[str, str | None] | None = None,
    ):
        self.store, self.progress, self.rerun = store, progress, rerun
        self._failed_before = failed_before or {}
        self.trainer = trainer or Trainer(sweep, progress)
        self._fits: dict[Kind, int] = {}  # runs together, of kinds that were too many for memory
        # Groups that were tried again as they are. Orbax waits by the time of day, so that a clock
        # that is set ends its waiting.
        self._late: set[frozenset[str]] = set()

    def _kind(self, cell: Cell) -> Kind:
        return _kind(cell, self.trainer.feed.task(cell.task).multi_label)

    def group(self, cells: list[Cell], size: int) -> Group:
        return Group(self.store, self.trainer, cells, size)

    def finished(self, cell: Cell) -> Result | None:
        """The stored result of a cell; UserError if it was made with other settings."""
        settings = cell.stored_settings(self.trainer.weights_sha256)
        return stored_result(self.store, cell, settings)

    def check_sources(self, cells: list[Cell], results: dict[str, Result]) -> None:
        """UserError if a cell that is to run would read its data set (at other shots, with another
        seed or method, too) from another source than a finished one did."""
        finished = {get_task(result.task).dataset: result for result in results.values()}
        for cell in cells:
            before = finished.get(get_task(cell.task).dataset)
            if cell.name in results or before is None:
                continue
            was, now = (
                {k: data[k] for k in ("builder", "used_version")}
                for data in (before.data, self.trainer.feed.data(cell.task).provenance)
            )
            if was != now:
                raise UserError(
                    f"{cell.name} would be read from {now}, but "
                    f"{self.store.result_path(before.cell)} was made from {was}: accuracies on "
                    "different images do not compare. Use another --workdir, or the "
                    "--config.data_dir of before."
                )

    def check_folders(self, results: dict[str, Result]) -> None:
        """UserError if one's own pictures are others than those of a finished cell."""
        for result in results.values():
            if result.data["used_version"] not in OWN:
                continue
            data = self.trainer.feed.data(result.task).provenance
            if data["fingerprint"] != result.data["fingerprint"]:
                raise UserError(
                    f"The pictures in {data['data_dir']} are others than those that "
                    f"{self.store.result_path(result.cell)} was made from: accuracies on "
                    "different images do not compare. Use another --workdir."
                )

    def groups(self, cells: list[Cell]) -> list[Group]:
        """Groups all cells of a sweep, in the plan's order.

        Finished cells count, too: without them the stacks would change, and with the stacks the
        last bits of results.
        """
        for cell in cells:
            check_measure(cell, self.trainer.feed.task(cell.task).multi_label)
        kinds: dict[Kind, list[int]] = {}
        for i, cell in enumerate(cells):
            kinds.setdefault(self._kind(cell), []).append(i)
        _check_together([[cells[i] for i in members] for members in kinds.values()])
        groups = []
        for members in kinds.values():
            of_kind = [cells[i] for i in members]
            if of_kind[0].together:
                size = len(of_kind)
                self.trainer.check_devices(of_kind[0].settings.batch_size, size)
            else:
                stages = [len(candidates(of_kind)), len(of_kind)]
                size = self.trainer.group_size(stages, of_kind)
            groups += [(part[-1], part, size) for part in batches(members, size)]
        return [self.group([cells[i] for i in part], size) for _, part, size in sorted(groups)]

    def run(
        self, cells: list[Cell], results: dict[str, Result], only: Collection[str] = ()
    ) -> Iterator[Outcome]:
        """Yields the outcome of every cell (named in `only`, if any is) without a result in
        `results`, as soon as it is there.

        A failure stops no other cell. Groups that another run works on are left to it; at the end
        their results, or failures, are awaited.
        """
        try:
            yield from self._run(cells, results, only)
        except OSError as error:  # of a claim, say
            raise self.store.unwritable(error) from error

    def _run(
        self, cells: list[Cell], results: dict[str, Result], only: Collection[str]
    ) -> Iterator[Outcome]:
        done: set[str] = set()  # what every process knows alike
        missing = agree(np.array([cell.name not in results for cell in cells]))
        done |= {cell.name for cell, out in zip(cells, missing, strict=True) if not out}
        if only:
            done |= {cell.name for cell in cells if cell.name not in only}
        if done.issuperset(cell.name for cell in cells):
            return  # without a look at the data, which may be gone
        failed_before = {c.name: self.store.failed_at(c.name) for c in cells if c.name not in done}
        failed_before |= self._failed_before
        waiting = self.groups(cells)
        while waiting := [g for g in waiting if any(c.name not in done for c in g.cells)]:
            worked = False
            for group in waiting:
                # The whole group trains, in its checkpoints, whatever of it is wanted.
                names = [cell.name for cell in group.cells]
                if done.issuperset(names):
                    continue
                with self.store.claims.hold(names if jax.process_index() == 0 else ()) as held:
                    mine = bool(agree(np.array(held)))
                    for outcome in self._of_others(group, done, failed_before):
                        yield outcome
                    if not mine or done.issuperset(names):
                        continue
                    worked = True
                    for outcome in self._attempt(group, done):
                        if isinstance(outcome, Failure):
                            (cell,) = (c for c in group.cells if c.name == outcome.cell)
                            store_failure(self.store, cell, outcome, self.rerun(cell.name))
                            done.add(outcome.cell)
                        else:
                            done.add(outcome.cell)
                            self.store.forget_failure(outcome.cell)
                        yield outcome
                free_programs()
            if not worked:
                self.progress.waiting()
                time.sleep(POLL)

    def _of_others(
        self, group: Group, done: set[str], failed_before: dict[str, str | None]
    ) -> Iterator[Outcome]:
        """Outcomes of a group's cells that other runs have stored since this one looked."""
        for cell in group.cells:
            if cell.name in done:
                continue
            failed_at, result = self.store.failed_at(cell.name), self.finished(cell)
            if agree(np.array(result is not None)):
                done.add(cell.name)
                if result is not None:
                    yield result
            elif agree(np.array(failed_at not in (None, failed_before[cell.name]))):
                done.add(cell.name)
                record = self.store.read_failure(cell.name)
                yield Failure(cell.name, UserError(f"{record.get('message')} (another run)"))

    def _attempt(self, group: Group, done: Collection[str]) -> Iterator[Outcome]:
        """Runs a group; one that fails is tried again in parts, down to the cell at fault."""
        fits = self._fits.get(self._kind(group.cells[0]), group.size)
        if fits < group.size:
            parts, size = list(batches(group.cells, fits)), fits
        else:
            try:
                yield from group.run(done)
                return
            except Exception as error:
                parts, size = self._parts(group, done, error)
                if not parts:
                    rest = [c for c in group.cells if c.name not in done]
                    yield from (Failure(c.name, _advised(error, c)) for c in rest)
                    return
                traceback.clear_frames(error.__traceback__)  # which hold what filled the memory
            gc.collect()
        for part in parts:
            if any(cell.name not in done for cell in part):
                yield from self._attempt(self.group(part, size), done)
        group.clean()

    def _parts(
        self, group: Group, done: Collection[str], error: Exception
    ) -> tuple[list[list[Cell]], int]:
        """The parts to try after this error, and the size of their stacks; no parts if the cell is
        at fault. Raises an error that no other try would mend."""
        if isinstance(error, UnreadableCheckpoint) and not out_of_memory(error):
            self.store.set_aside(error.directory, error)
            agree(np.array(True))  # none looks for it before it is gone
            return [group.cells], group.size
        if isinstance(error, Unwritable):
            raise error
        if no_space(error):  # of another folder, such as the data cache, a UserError tells itself
            raise error if isinstance(error, UserError) else self.store.unwritable(error)
        self.store.check()  # a work directory that went away fails no cell
        if jax.process_count() > 1:  # the others may not have failed
            raise error
        names, text = frozenset(cell.name for cell in group.cells), _one_line(error)
        if isinstance(error, TimeoutError) and names not in self._late:
            self._late.add(names)
            self.progress.note(
                f"{group.cells[0].name} and what trains with it: again, after {text}."
            )
            return [group.cells], group.size
        if group.cells[0].together:  # in parts they would learn other dictionaries
            return [], group.size
        if out_of_memory(error) and group.size > 1:
            size = group.size // 2
            self._fits[self._kind(group.cells[0])] = size
            self.progress.note(
                f"Out of memory with {group.size} runs together: going on with {size}."
            )
            return list(batches(group.cells, size)), size
        if len(group.cells) > 1:
            self.progress.note(f"{len(group.cells)} runs together, now each alone, after {text}.")
            return [[cell] for cell in group.cells if cell.name not in done], group.size
        return [], group.size
