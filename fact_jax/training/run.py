"""Training of a stack of trials over many epochs, which can be stopped anywhere and resumed."""

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fact_jax.training.mesh import agree, fetch, put, replicated
from fact_jax.training.trial import NonFiniteLoss, TrialState, check_finite


class Outcome(NamedTuple):
    """The outcome of each trial, as lists in their order.

    `trainable` on the host; `losses` and `accuracies` [epochs], the mean loss of each epoch and the
    accuracy in % after it, NaN where none was measured; `errors` None where all went well.
    """

    trainable: list[dict]
    losses: list[np.ndarray]
    accuracies: list[np.ndarray]
    errors: list[NonFiniteLoss | None]


# Seconds of work that a killed process may lose besides the current epoch. A few-shot epoch takes
# a tenth of the time of its checkpoint.
SAVE_EVERY = 2.0


class UnreadableCheckpoint(Exception):
    """Raised where a run's checkpoint `directory` cannot be read."""

    def __init__(self, directory: epath.Path, error: Exception):
        super().__init__(str(error))
        self.directory = directory


def _checksum(tree: Any) -> np.ndarray:
    """CRC-32 of the numbers of a tree, uint32 [1]. Orbax does not notice a flipped bit."""
    crc = 0
    for leaf in jax.tree.leaves(fetch(tree)):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return np.array([crc], np.uint32)


def train(
    epoch: Callable[[TrialState, int], tuple[TrialState, jax.Array]],
    states: TrialState,
    *,
    epochs: int,
    steps: Sequence[int],
    directory: epath.Path,
    settings: Sequence[dict[str, Any]],
    evaluate: Callable[[int, dict], float] | None = None,
    eval_every: int = 0,
    on_epoch: Callable[[int, list[float], list[float]], None] = lambda *measured: None,
) -> Outcome:
    """Runs ``states, losses = epoch(states, e)`` for e = 0 ... epochs - 1.

    An epoch leaves a checkpoint if SAVE_EVERY seconds have passed since the last one, if it is
    evaluated, or if `on_epoch` raises.

    `states` stacks at least as many trials as there are `steps` (batches of an epoch) and
    `settings` (named in errors); further ones are padding. ``evaluate(t, trainable)`` gives the
    accuracy of trial t; it is called after every `eval_every` epochs and after the last.
    ``on_epoch(done, losses, accuracies)`` is called after every epoch; a resumed run first calls it
    again for the epochs that it finds done.
    A trial whose numbers become non-finite gets an error and is not evaluated. The others go on;
    training ends if none is left. A checkpoint in `directory` is resumed, so that the outcome
    equals that of an uninterrupted run. Raises UnreadableCheckpoint if it cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    mesh = jax.tree.leaves(states)[0].sharding.mesh
    count = len(steps)
    curves = {
        name: np.full((count, epochs), np.nan, np.float32) for name in ("losses", "accuracies")
    }
    errors: list[NonFiniteLoss | None] = [None] * count

    def tree() -> dict[str, Any]:
        at = put(curves, replicated(mesh))
        content = {"trainable": states.trainable, "moments": states.moments, **at}
        return {**content, "checksum": put(_checksum(content), replicated(mesh))}

    def check(t: int, losses: np.ndarray, trained: dict, e: int) -> None:
        try:
            check_finite(losses, trained, e, settings[t])
        except NonFiniteLoss as error:
            errors[t] = error

    def due(e: int) -> bool:
        """Whether epoch e is to be evaluated."""
        return e == epochs - 1 or bool(eval_every and (e + 1) % eval_every == 0)

    def measure(e: int) -> None:
        """Evaluates the trials that have no accuracy of epoch e yet, if it is due."""
        if evaluate and due(e):
            for t in range(count):
                if errors[t] is None and np.isnan(curves["accuracies"][t, e]):
                    curves["accuracies"][t, e] = evaluate(t, trained[t])

    def trained_of(states: TrialState) -> list[dict]:
        host = fetch(states.trainable)
        return [jax.tree.map(lambda x: x[t], host) for t in range(count)]  # noqa: B023

    latest_only = ocp.training.preservation_policies.LatestN(1)
    with ocp.training.Checkpointer(
        directory, preservation_policy=latest_only, cleanup_tmp_directories=True
    ) as checkpointer:
        first, trained, saved = 0, trained_of(states), time.monotonic()
        if checkpointer.latest is not None:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree()
            )
            try:
                stored = checkpointer.load(checkpointer.latest.step, abstract)
            except Exception as error:
                raise UnreadableCheckpoint(directory, error) from error
            checksum = fetch(stored.pop("checksum"))
            if not np.array_equal(checksum, _checksum(stored)):
                reason = "its numbers are not those that were saved: the checksum differs"
                raise UnreadableCheckpoint(directory, ValueError(reason))
            first = min(checkpointer.latest.step + 1, epochs)
            states = TrialState(stored["trainable"], stored["moments"])
            curves = {name: np.array(fetch(stored[name])) for name in curves}
            trained = trained_of(states)
            for t in range(count):  # a trial that failed before the stop stays failed
                bad = np.flatnonzero(~np.isfinite(curves["losses"][t, :first]))
                if bad.size or not all(np.isfinite(x).all() for x in jax.tree.leaves(trained[t])):
                    epoch_of = int(bad[0]) if bad.size else first - 1
                    text = ", ".join(f"{k}={v}" for k, v in settings[t].items())
                    errors[t] = NonFiniteLoss(
                        f"Training had left the finite numbers in epoch {epoch_of}, before it was "
                        "stopped. Lower the scale or the learning rate. It was trained with "
                        f"{text}."
                    )
            measure(first - 1)  # the stop may have come before it
            for e in range(first):
                on_epoch(e + 1, *(curves[name][:, e].tolist() for name in curves))
        for e in range(first, epochs):
            states, device_losses = epoch(states, e)
            losses, trained = fetch(device_losses), trained_of(states)
            for t, taken in enumerate(steps):
                curves["losses"][t, e] = losses[t, :taken].mean()
                if errors[t] is None:
                    check(t, losses[t, :taken], trained[t], e)
            if all(errors):
                break
            # Saved before evaluating, so that a failure there costs no training.
            if agree(np.array(due(e) or time.monotonic() - saved > SAVE_EVERY)):
                checkpointer.save(e, tree())
                saved = time.monotonic()
            measure(e)
            try:
                on_epoch(e + 1, *(curves[name][:, e].tolist() for name in curves))
            except BaseException as error:  # such as the request of SIGTERM to stop
                # If only one process has the error, the others would not save with it.
                alone = jax.process_count() > 1 and isinstance(error, Exception | KeyboardInterrupt)
                if not alone and (checkpointer.latest is None or checkpointer.latest.step < e):
                    checkpointer.save(e, tree())
                raise
        latest = checkpointer.latest
        if evaluate and not all(errors) and latest is not None and latest.step < epochs:
            checkpointer.save(epochs, tree())  # once more, with the last accuracies
    return Outcome(trained, list(curves["losses"]), list(curves["accuracies"]), errors)
