"""The runs that a sweep's cells need, their outcomes, and who is told of their progress."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from fact_jax.data import get_task
from fact_jax.sweep.evolution import Architecture
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.plan import Candidate, Cell
from fact_jax.training.trial import NonFiniteLoss, Trainable
from fact_jax.tuning.method import SearchMethod


class Run(NamedTuple):
    """One training of a cell: a candidate's ('selection'), that of a network from which an
    architecture is chosen ('supernet'), or the final one."""

    cell: Cell
    stage: str
    candidate: Candidate
    choice: Architecture | None = None

    @property
    def split(self) -> str:
        """The split that it is trained on."""
        return get_task(self.cell.task).train_split(self.cell.seed, self.stage == "final")

    @property
    def eval_split(self) -> str:
        return get_task(self.cell.task).eval_split(self.stage == "final")

    @property
    def epochs(self) -> int:
        method = self.cell.method
        if self.stage == "supernet" and isinstance(method, SearchMethod):
            return method.supernet_epochs
        return self.cell.settings.epochs

    @property
    def peak_rate(self) -> float:
        method = self.cell.method
        if self.stage == "supernet" and isinstance(method, SearchMethod):
            return method.supernet_learning_rate
        return self.candidate.learning_rate


class Progress(Protocol):
    """Listens to the runner while it works."""

    def start(self, runs: list[Run], epochs: int) -> None: ...
    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None: ...
    def note(self, text: str) -> None: ...
    def waiting(self) -> None: ...


def candidates(cells: Sequence[Cell]) -> list[Run]:
    """The trainings among which these cells choose."""
    several = (cell for cell in cells if len(cell.candidates) > 1)
    return [Run(cell, "selection", candidate) for cell in several for candidate in cell.candidates]


class Trained(NamedTuple):
    """The outcome of a run; the factors and the head are on the host."""

    run: Run
    trainable: Trainable
    losses: list[float]
    accuracies: list[float]
    error: NonFiniteLoss | None
    num_train: int
    num_eval: int
    details: dict[str, Any]
    findings: Findings | None = None  # of the last evaluation


class Failure(NamedTuple):
    """A cell that could not be finished, and why."""

    cell: str
    error: Exception
