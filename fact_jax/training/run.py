"""Training of a stack of trials over many epochs, which can be stopped anywhere and resumed."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fact_jax.training.checkpoint import Checkpoint
from fact_jax.training.mesh import agree, fetch, put, replicated
from fact_jax.training.trial import NonFiniteLoss, Trainable, TrialState

# Seconds of work that a killed process may lose besides the current epoch. A few-shot epoch takes
# a tenth of the time of its checkpoint.
SAVE_EVERY = 2.0


class Outcome(NamedTuple):
    """The outcome of each trial, as lists in their order.

    `trainable` on the host; `losses` and `accuracies` [epochs], the mean loss of each epoch and the
    accuracy in % after it, NaN where none was measured; `errors` None where all went well.
    """

    trainable: list[Trainable]
    losses: list[np.ndarray]
    accuracies: list[np.ndarray]
    errors: list[NonFiniteLoss | None]


class _Progress:
    """The progress of a training: the states, the curves, and the trials' errors."""

    def __init__(self, states: TrialState, trials: int, epochs: int):
        self.mesh: Mesh = jax.tree.leaves(states)[0].sharding.mesh
        self.losses = np.full((trials, epochs), np.nan, np.float32)
        self.accuracies = self.losses.copy()
        self.errors: list[NonFiniteLoss | None] = [None] * trials
        self.take(states)

    def take(self, states: TrialState) -> None:
        """Takes over new states, and their trained arrays of each trial on the host."""
        self.states, host = states, fetch(states.trainable)
        self.trained = [jax.tree.map(lambda x, t=t: x[t], host) for t in range(len(self.errors))]

    @property
    def content(self) -> dict[str, Any]:
        """The arrays of a checkpoint."""
        curves = {"losses": self.losses, "accuracies": self.accuracies}
        states = {"trainable": self.states.trainable, "moments": self.states.moments}
        if self.states.memory is not None:
            states["memory"] = self.states.memory
        return {**states, **put(curves, replicated(self.mesh))}

    def restore(self, content: dict[str, Any]) -> None:
        """Takes over the arrays of a checkpoint."""
        self.take(TrialState(content["trainable"], content["moments"], content.get("memory")))
        self.losses, self.accuracies = (
            np.array(fetch(content[name])) for name in ("losses", "accuracies")
        )

    def measured(self, e: int) -> tuple[list[float], list[float]]:
        """Losses and accuracies of epoch e."""
        return self.losses[:, e].tolist(), self.accuracies[:, e].tolist()

    def finite(self, t: int) -> bool:
        """Whether all trained numbers of trial t are finite: no loss shows the last update yet."""
        return all(np.isfinite(x).all() for x in jax.tree.leaves(self.trained[t]))


@dataclasses.dataclass(frozen=True)
class Training:
    """``states, losses = epoch(states, e)`` for e = 0 ... epochs - 1.

    An epoch leaves a checkpoint if SAVE_EVERY seconds have passed since the last one, if it is
    evaluated, or if `on_epoch` raises.

    Attributes:
      steps: batches of an epoch, by trial; further trials of the stack are padding.
      settings: what errors name, by trial.
      evaluate: ``evaluate(t, trainable)`` gives the accuracy of trial t; it is called after every
        `eval_every` epochs and after the last.
      on_epoch: ``on_epoch(done, losses, accuracies)`` is called after every epoch; a resumed run
        first calls it again for the epochs that it finds done.
      like: ``like(e)`` gives states with the shapes and places that they have after epoch e, where
        these are not always those of the first states.
    """

    epoch: Callable[[TrialState, int], tuple[TrialState, jax.Array]]
    epochs: int
    steps: Sequence[int]
    settings: Sequence[dict[str, Any]]
    evaluate: Callable[[int, Trainable], float] | None = None
    eval_every: int = 0
    on_epoch: Callable[[int, list[float], list[float]], None] = lambda *measured: None
    like: Callable[[int], TrialState] | None = None

    def run(self, states: TrialState, directory: epath.Path) -> Outcome:
        """Trains, from the checkpoint in the directory if there is one.

        The outcome equals that of an uninterrupted run. A trial whose numbers become non-finite
        gets an error and is not evaluated. The others go on; training ends if none is left. Raises
        UnreadableCheckpoint if the checkpoint cannot be read.
        """
        progress, saved = _Progress(states, len(self.steps), self.epochs), time.monotonic()
        with Checkpoint.opened(directory, progress.mesh) as checkpoint:
            first = 0 if checkpoint.step < 0 else self._resume(progress, checkpoint)
            for e in range(first, self.epochs):
                self._train(progress, e)
                if all(progress.errors):
                    break
                # Saved before evaluating, so that a failure there costs no training.
                if agree(np.array(self._due(e) or time.monotonic() - saved > SAVE_EVERY)):
                    checkpoint.save(e, progress.content)
                    saved = time.monotonic()
                self._measure(progress, e)
                try:
                    self.on_epoch(e + 1, *progress.measured(e))
                except BaseException as error:  # such as the request of SIGTERM to stop
                    # If only one process has the error, the others would not save with it.
                    of_one = isinstance(error, Exception | KeyboardInterrupt)
                    if checkpoint.step < e and not (of_one and jax.process_count() > 1):
                        checkpoint.save(e, progress.content)
                    raise
            evaluated = self.evaluate and not all(progress.errors)
            if evaluated and 0 <= checkpoint.step < self.epochs:
                checkpoint.save(self.epochs, progress.content)  # with the last accuracies
        return Outcome(
            progress.trained, list(progress.losses), list(progress.accuracies), progress.errors
        )

    def _resume(self, progress: _Progress, checkpoint: Checkpoint) -> int:
        """Goes on from a checkpoint; gives the epoch to begin with."""
        first = min(checkpoint.step + 1, self.epochs)
        if self.like is not None:
            progress.states = self.like(first - 1)
        progress.restore(checkpoint.load(progress.content))
        for t in range(len(self.steps)):  # a trial that failed before the stop stays failed
            bad = np.flatnonzero(~np.isfinite(progress.losses[t, :first]))
            if bad.size or not progress.finite(t):
                epoch = int(bad[0]) if bad.size else first - 1
                progress.errors[t] = NonFiniteLoss(
                    f"Training had left the finite numbers in epoch {epoch}, before it was "
                    "stopped. Lower the scale or the learning rate. It was trained with "
                    f"{self._settings_text(t)}."
                )
        self._measure(progress, first - 1)  # the stop may have come before it
        for e in range(first):
            self.on_epoch(e + 1, *progress.measured(e))
        return first

    def _train(self, progress: _Progress, e: int) -> None:
        """Trains epoch e, and gives an error to trials that leave the finite numbers."""
        states, losses = self.epoch(progress.states, e)
        progress.take(states)
        losses = fetch(losses)
        for t, steps in enumerate(self.steps):
            progress.losses[t, e] = losses[t, :steps].mean()
            if progress.errors[t] is None:
                progress.errors[t] = self._error(progress, t, e, losses[t, :steps])

    def _error(
        self, progress: _Progress, t: int, e: int, losses: np.ndarray
    ) -> NonFiniteLoss | None:
        """The error of a trial after epoch e with the first bad step; None if all is finite."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if progress.finite(t) and not bad.size:
            return None
        first = int(bad[0]) if bad.size else len(losses) - 1
        loss = f"The loss became {losses[first]}" if bad.size else ""
        return NonFiniteLoss(
            f"{loss or 'A trained number became non-finite'} at step {e * len(losses) + first} "
            f"(epoch {e}). Lower the scale or the learning rate, or check the images. It was "
            f"trained with {self._settings_text(t)}."
        )

    def _settings_text(self, t: int) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.settings[t].items())

    def _due(self, e: int) -> bool:
        """Whether epoch e is to be evaluated."""
        return e == self.epochs - 1 or bool(self.eval_every and (e + 1) % self.eval_every == 0)

    def _measure(self, progress: _Progress, e: int) -> None:
        """Evaluates the trials that have no accuracy of epoch e yet, if it is due."""
        if self.evaluate and self._due(e):
            for t, error in enumerate(progress.errors):
                if error is None and np.isnan(progress.accuracies[t, e]):
                    progress.accuracies[t, e] = self.evaluate(t, progress.trained[t])
