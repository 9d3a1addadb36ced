"""Checkpoints that are damaged, what is told again when a run goes on, and full disks.

The commands themselves are killed by benchmarks/robustness/faults.py.
"""

import builtins
import errno
import gc
import io
import random
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from told import Told

from configs import quickstart
from fact_jax.cli.live import Bars
from fact_jax.cli.loggers import Curves, TensorBoard
from fact_jax.sweep.faults import no_space
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.runs import Run
from fact_jax.training.checkpoint import UnreadableCheckpoint
from fact_jax.training.mesh import make_mesh, stack
from fact_jax.training.recipe import PLAIN
from fact_jax.training.run import Training
from fact_jax.training.trial import TrialState


class Stopped(Exception):
    pass


def training(directory, told=None, stop=None, init=lambda tree: jax.tree.map(jnp.zeros_like, tree)):
    """Four epochs of two trials, or fewer; what is told of each is put into `told`."""
    mesh = make_mesh(4)
    numbers = np.random.default_rng(0).normal(size=(40, 20)).astype(np.float32)
    tree = {"factors": {"U": jnp.array(numbers)}, "head": {"kernel": jnp.ones((5, 3))}}
    states = stack([TrialState(tree, init(tree))] * 2, mesh)

    def epoch(states, e):
        moved = jax.tree.map(lambda x: x * 1.01 + e, states.trainable)
        return TrialState(moved, states.moments), np.full((2, 3), float(e), np.float32)

    def on_epoch(done, losses, accuracies):
        if told is not None:
            told.append((done, losses, accuracies))
        if done == stop:
            raise Stopped

    return Training(
        epoch,
        epochs=4,
        steps=[3, 3],
        settings=[{}, {}],
        evaluate=lambda t, tree: float(tree["factors"]["U"].sum()),
        on_epoch=on_epoch,
    ).run(states, epath.Path(directory))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """(a run that was stopped after its second epoch, the outcome it should have)."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Stopped):
        training(folder / "half", stop=2)
    return folder / "half", training(folder / "whole")


def test_a_checkpoint_with_the_moments_of_an_earlier_version_is_refused(tmp_path):
    """It is set aside then, and the group begins again; its bits are not taken for others."""
    with pytest.raises(Stopped):
        training(tmp_path, stop=1, init=optax.scale_by_adam().init)
    with pytest.raises(UnreadableCheckpoint):
        training(tmp_path, init=PLAIN.init)


def damage(content, how):
    content, rng = bytearray(content), random.Random(0)
    if how == "flipped bit":
        content[len(content) // 2] ^= 16
    elif how == "cut short":
        del content[len(content) // 2 :]
    elif how == "garbage":
        content = rng.randbytes(len(content))
    return bytes(len(content)) if how == "zeros" else bytes(content)


OTHER_DAMAGE = ("deleted", "cut short", "zeros", "garbage")


@pytest.mark.parametrize(
    "how",
    ["flipped bit", *(pytest.param(how, marks=pytest.mark.slow) for how in OTHER_DAMAGE)],
)
# Orbax drops coroutines of the reads that were under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_to_any_file_of_a_checkpoint_changes_the_outcome(half, tmp_path, how):
    """It is read, and rightly, or it is refused; and what is refused can be made anew."""
    stopped, expected = half
    files = sorted(p.relative_to(stopped) for p in stopped.rglob("*") if p.is_file())
    refused = 0
    for i, file in enumerate(files):
        directory = tmp_path / str(i)
        shutil.copytree(stopped, directory)
        if how == "deleted":
            (directory / file).unlink()
        else:
            (directory / file).write_bytes(damage((stopped / file).read_bytes(), how))
        try:
            outcome = training(directory)
        except UnreadableCheckpoint:
            refused += 1
            continue
        whole, read = ((o.losses, *jax.tree.leaves(o.trainable)) for o in (expected, outcome))
        np.testing.assert_equal(read, whole, str(file))
    assert refused >= 4  # the arrays themselves and what leads to them
    gc.collect()  # here, where the coroutines are expected


def test_what_was_done_before_is_told_again_when_a_run_goes_on(half, tmp_path):
    stopped, _ = half
    shutil.copytree(stopped, tmp_path / "half")
    told: list = []
    expected: list = []
    training(tmp_path / "half", told)
    training(tmp_path / "whole", expected)
    np.testing.assert_equal(told, expected)
    assert [done for done, *_ in told] == [1, 2, 3, 4]


def read_scalars(folder):
    """{tag: [(step, value)]} as TensorBoard has them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    events = accumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def two_cells(**settings):
    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt", seeds=(0, 1))
    config.fact_tt = ConfigDict({"rank": 4, **settings})
    return make_plan(config)


def test_tensorboard_has_each_epoch_once_however_often_a_run_was_stopped(tmp_path):
    pytest.importorskip("tensorboardX")
    one, other = two_cells(scales=(0.1, 1.0))
    runs = [Run(one, "selection", one.candidates[1]), Run(other, "final", other.candidates[0])]
    losses = [[0.5**e, 2 * 0.5**e] for e in range(5)]
    accuracies = [[float("nan"), float("nan")]] * 4 + [[50.0, 75.0]]
    for stopped_after in (2, 4, 5):  # a run that goes on tells of all epochs
        scalars = Curves([TensorBoard(epath.Path(tmp_path))], Told())
        scalars.start(runs, 5)
        for e in range(stopped_after):
            scalars.epoch(e + 1, losses[e], accuracies[e])
        if stopped_after == 5:
            scalars.close()  # the others were killed
    folders = {path.name: path for path in tmp_path.glob("tensorboard/*/*")}
    assert folders.keys() == {"selection scale=1", "final"}
    for t, name in enumerate(("selection scale=1", "final")):
        scalars = read_scalars(folders[name])
        assert scalars["loss"] == [(e + 1, pytest.approx(losses[e][t])) for e in range(5)]
        assert scalars["accuracy"] == [(5, accuracies[4][t])]


def test_a_full_disk_does_not_hang_tensorboards_writer(tmp_path, monkeypatch):
    record_writer = pytest.importorskip("tensorboardX.record_writer")
    cell, _ = two_cells()
    scalars = Curves([TensorBoard(epath.Path(tmp_path))], Told())
    scalars.start([Run(cell, "final", cell.candidates[0])], 100)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "flush", full)
    for e in range(20):  # more than fit into a queue
        with pytest.raises(OSError, match="No space") as error:
            scalars.epoch(e, [1.0], [1.0])
    assert no_space(error.value)
    scalars.close()


def test_the_bars_are_drawn_while_imports_are_lazy(monkeypatch):
    """TFDS's import does this; the thread would die, and print a traceback."""
    screen, real = io.StringIO(), builtins.__import__
    monkeypatch.setenv("TERM", "xterm")  # rich draws no bars on a dumb one
    bars = Bars(Console(file=screen, force_terminal=True, width=120))
    bars.expect(10, 4, 1)

    def drawn(text):
        deadline = time.monotonic() + 30
        while text not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        return text in screen.getvalue()

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if level:
            raise ValueError(f"Relative import statements not supported ({name}).")
        return real(name, globals, locals, fromlist, level)

    with pytest.MonkeyPatch.context() as patch, bars.progress:
        patch.setattr(builtins, "__import__", refuse)
        time.sleep(0.5)  # a few times, in its own thread
        patch.undo()
        bars.progress.update(bars._all, completed=7)
        assert drawn("7/10")  # it still draws
        assert drawn("cells: 1 done, 4 to do")
        bars.start([SimpleNamespace(cell=SimpleNamespace(name="a"), stage="final")] * 2, 5)
        assert drawn("cells: 1 done, 2 running, 2 to do")
