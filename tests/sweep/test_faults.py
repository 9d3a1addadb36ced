"""Cells that fail, memory that does not suffice, checkpoints that are damaged: what becomes of the
others. The commands themselves are killed by benchmarks/robustness/faults.py."""

import errno
import gc
import json
import random
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict
from report_results import result

from configs import quickstart
from fact_jax import UserError
from fact_jax.cli.live import Scalars
from fact_jax.sweep import group as group_module
from fact_jax.sweep import runner as runner_module
from fact_jax.sweep.evolution import search
from fact_jax.sweep.faults import no_space, out_of_memory
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Failure, Run, Trained
from fact_jax.sweep.store import Store, Unwritable
from fact_jax.training.mesh import make_mesh, stack
from fact_jax.training.recipe import PLAIN
from fact_jax.training.run import UnreadableCheckpoint, train
from fact_jax.training.trial import NonFiniteLoss, TrialState

NO_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


@pytest.mark.parametrize(("rank", "named"), [(16, False), (500, True)])
def test_advice_for_want_of_memory_names_a_rank_beyond_the_vit_s_width(rank, named):
    config = quickstart.get_config()
    config.methods, config.fact_tt.rank = "fact_tt", rank
    text = str(runner_module._advised(NO_MEMORY, make_plan(config)[0]))
    words = "a smaller --config.fact_tt.rank (it is 500, and the ViT's width 128), --config.remat"
    assert (words in text) == named


class Fake:
    """A stand-in for the trainer: no cell is trained, and some fail. `fails(seeds, size)` gives
    the error of a training, or None."""

    weights_sha256, padded_classes = "0" * 64, 397

    def __init__(self, fails=lambda seeds, size: None, diverging=(), size=4):
        self.fails, self.diverging, self.size, self.calls = fails, diverging, size, []

    @property
    def feed(self):
        return self

    def group_size(self, stages, cells):
        return self.size

    def data(self, task):
        return SimpleNamespace(provenance={"used_version": "1", "fingerprint": task})

    def train(self, runs, size, directory):
        seeds = [run.cell.seed for run in runs]
        self.calls.append((seeds, size))
        directory.mkdir(parents=True, exist_ok=True)
        if error := self.fails(seeds, size):
            raise error
        bad = {seed: NonFiniteLoss("left the finite numbers") for seed in self.diverging}
        return [
            Trained(run, {}, [0.0], [float(run.cell.seed)], bad.get(run.cell.seed), 1, 1, {})
            for run in runs
        ]


class Told:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def start(self, *args):
        pass

    epoch = waiting = start


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """``sweep(trainer, seeds, only)``: ({seed: result}, {seed: error}, notes, work directory)."""

    def store_result(store, trainer, trained, **_):
        cell = trained.run.cell
        out = result(cell.task, cell.method_name, cell.seed, factor_file_bytes=0)
        out["settings"] = cell.stored_settings(trainer.weights_sha256)
        store.write(store.factors_path(cell.name), b"")
        store.write_json(store.result_path(out["cell"]), out)
        return out

    monkeypatch.setattr(group_module, "store_result", store_result)

    def run(trainer, seeds=4, only=(), workdir=tmp_path / "work"):
        config = quickstart.get_config()
        config.update(tasks="digits", methods="fact_tt", seeds=tuple(range(seeds)))
        config.fact_tt = ConfigDict({"rank": 4})
        cells = make_plan(config)
        told = Told()
        store, command = Store(workdir, told.note), lambda name: f"run --cells={name}"
        runner = Runner(read_settings(config), store, told, command, trainer)
        seed_of = {cell.name: cell.seed for cell in cells}
        before = {c.name: r for c in cells if (r := runner.finished(c)) is not None}
        outcomes = list(runner.run(cells, before, [cells[i].name for i in only]))
        failed = [(seed_of[o.cell], o.error) for o in outcomes if isinstance(o, Failure)]
        done = [seed_of[o["cell"]] for o in outcomes if not isinstance(o, Failure)]
        assert len(failed) == len(dict(failed))  # each is told of once
        assert len(done) == len(set(done))
        return done, dict(failed), told.notes, workdir

    return run


def test_what_another_run_finished_meanwhile_is_not_trained(sweep, tmp_path):
    """It is told of, from its result."""

    class Beside(Fake):
        """While it trains the first group, another run finishes the second."""

        def train(self, runs, size, directory):
            if len(self.calls) == 0:
                self.calls.append("another run")
                other = Fake(size=2)
                sweep(other, only=(2, 3))
                assert other.calls == [([2, 3], 2)]
            return super().train(runs, size, directory)

    trainer = Beside(size=2)
    done, failed, *_ = sweep(trainer)
    assert trainer.calls == ["another run", ([0, 1], 2)]
    assert (done, failed) == ([0, 1, 2, 3], {})


def test_runs_that_want_different_cells_of_a_group_train_it_one_after_the_other(sweep, monkeypatch):
    """They would train the same stack in the same checkpoints."""
    monkeypatch.setattr(runner_module, "POLL", 0.01)
    inside, most, first = [], [], threading.Event()

    class Slow(Fake):
        def train(self, runs, size, directory):
            inside.append(1)
            most.append(len(inside))
            first.set()
            time.sleep(0.3)
            inside.pop()
            return super().train(runs, size, directory)

    thread = threading.Thread(target=lambda: sweep(Slow(), only=(0,)))
    thread.start()
    first.wait()
    done, *_ = sweep(Slow(), only=(1,))
    thread.join()
    assert 1 in done
    assert most == [1] * len(most)


def checkpoints(workdir):
    return [p for p in (workdir / "checkpoints").glob("*/*") if "unreadable" not in p.name]


def test_a_cell_that_raises_stops_no_other_and_leaves_a_record(sweep):
    trainer = Fake(lambda seeds, size: ValueError("seed 2 is bad") if 2 in seeds else None)
    done, failed, notes, workdir = sweep(trainer, 6)
    assert done == [0, 1, 3, 4, 5]
    assert list(failed) == [2]
    assert "4 runs together, now each alone, after ValueError: seed 2 is bad." in notes
    # The group, its cells one by one in stacks of the same size, the next group.
    assert trainer.calls == [([0, 1, 2, 3], 4), *[([s], 4) for s in range(4)], ([4, 5], 4)]
    (path,) = (workdir / "failures").iterdir()
    record = json.loads(path.read_text())
    assert record["cell"] == path.stem == "digits-fact_tt-seed2"
    assert (record["error"], record["message"]) == ("ValueError", "seed 2 is bad")
    assert "in train\n" in record["traceback"]
    assert record["command"] == "run --cells=digits-fact_tt-seed2"
    assert record["when"]
    assert record["environment"]
    # What made it fail has gone.
    done, failed, _, _ = sweep(Fake(), 6)
    assert (done, failed) == ([2], {})
    assert not list((workdir / "failures").iterdir())


def test_a_cell_is_not_blamed_for_what_another_of_its_group_does(sweep):
    """Only one of them was asked for; the one at fault was not."""
    trainer = Fake(lambda seeds, size: ValueError("seed 2 is bad") if 2 in seeds else None)
    done, failed, _, _ = sweep(trainer, only=(1,))
    assert (done, failed) == ([1], {})


def test_a_cell_that_was_not_asked_for_does_not_fail(sweep):
    done, failed, _, _ = sweep(Fake(diverging=(2,)), only=(1,))
    assert (done, failed) == ([1], {})
    done, failed, _, _ = sweep(Fake(diverging=(2,)))
    assert (done, list(failed)) == ([0, 3], [2])


def test_what_was_trained_along_is_kept_for_those_that_were_not_asked_for(sweep):
    _, _, _, workdir = sweep(Fake(), only=(1,))
    assert checkpoints(workdir)
    sweep(Fake())
    assert not checkpoints(workdir)


def test_a_cell_that_diverges_keeps_its_checkpoints_and_has_no_traceback(sweep):
    done, failed, _, workdir = sweep(Fake(diverging=(0,)))
    assert (done, list(failed)) == ([1, 2, 3], [0])
    assert checkpoints(workdir)
    (path,) = (workdir / "failures").iterdir()
    assert json.loads(path.read_text())["traceback"] == ""


def test_memory_that_does_not_suffice_halves_the_stack_for_good(sweep):
    trainer = Fake(lambda seeds, size: NO_MEMORY if size > 1 else None)
    done, failed, notes, workdir = sweep(trainer, 6)
    assert (sorted(done), failed) == (list(range(6)), {})
    tried = [size for _, size in trainer.calls]
    assert tried == [4, 2, *[1] * 6]  # the second group begins with what the first has learnt
    assert [note for note in notes if "Out of memory with 4 runs together: going on with 2" in note]
    assert not checkpoints(workdir)


def test_what_waited_too_long_is_tried_again_together(sweep):
    """Orbax waits by the time of day: a clock that is set ends its waiting."""
    errors = [TimeoutError("timed out after 0.00 seconds")]
    trainer = Fake(lambda seeds, size: errors.pop() if errors else None)
    done, failed, notes, _ = sweep(trainer)
    assert (done, failed) == ([0, 1, 2, 3], {})
    assert trainer.calls == [([0, 1, 2, 3], 4)] * 2
    assert "timed out after 0.00 seconds" in notes[0]


def test_what_always_waits_too_long_fails(sweep):
    trainer = Fake(lambda seeds, size: TimeoutError("still") if 1 in seeds else None)
    done, failed, _, _ = sweep(trainer)
    assert (done, list(failed)) == ([0, 2, 3], [1])
    assert trainer.calls == [
        *[([0, 1, 2, 3], 4)] * 2,
        ([0], 4),
        *[([1], 4)] * 2,
        ([2], 4),
        ([3], 4),
    ]


def test_one_cell_too_large_for_memory_fails_alone(sweep):
    done, failed, _, _ = sweep(Fake(lambda seeds, size: NO_MEMORY if 0 in seeds else None))
    assert (sorted(done), list(failed)) == ([1, 2, 3], [0])


def test_one_that_fails_and_another_that_needs_memory_are_told_of_once(sweep):
    trainer = Fake(lambda seeds, size: NO_MEMORY if size > 2 else None, diverging=(1,))
    done, failed, _, _ = sweep(trainer)
    assert (sorted(done), list(failed)) == ([0, 2, 3], [1])


def test_a_failed_cell_does_not_keep_what_filled_the_memory(sweep):
    import weakref

    class Large:
        pass

    held = []

    def fail(seeds, size):
        large = Large()
        held.append(weakref.ref(large))
        try:
            raise ValueError("with a large array in its frame")
        except ValueError as error:
            return error

    _, failed, _, _ = sweep(Fake(fail), 1)
    assert list(failed) == [0]  # and with it its traceback
    assert [ref() for ref in held] == [None] * len(held)


def test_a_full_disk_stops_the_sweep_and_fails_no_cell(sweep, tmp_path):
    full = Fake(lambda seeds, size: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(Unwritable, match="is full"):
        sweep(full)
    words = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: write: No space left on device")
    with pytest.raises(Unwritable, match="is full"):
        sweep(Fake(lambda seeds, size: words))
    assert not list(tmp_path.glob("work/failures/*"))
    assert sweep(Fake())[0] == [0, 1, 2, 3]


def test_a_full_disk_elsewhere_is_not_the_work_directorys(sweep):
    def cache(seeds, size):
        error = UserError("Cannot write the decoded split to /cache: free the space")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        return error

    with pytest.raises(UserError, match="^Cannot write the decoded split to /cache"):
        sweep(Fake(cache))


def test_data_that_may_not_be_read_fail_their_cell_only(sweep):
    def forbidden(seeds, size):
        return PermissionError(errno.EACCES, "Permission denied: /data/x") if 1 in seeds else None

    done, failed, _, _ = sweep(Fake(forbidden))
    assert (sorted(done), list(failed)) == ([0, 2, 3], [1])


def test_a_claim_that_cannot_be_made_is_a_message(sweep, monkeypatch):
    from fact_jax.sweep import claims

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(claims.os, "open", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        sweep(Fake())


def test_an_unreadable_checkpoint_is_set_aside_once_and_the_group_begins_again(sweep, tmp_path):
    fails = []

    class Unreadable(Fake):
        def train(self, runs, size, directory):
            if not fails:
                directory.mkdir(parents=True, exist_ok=True)
                fails.append(directory)
                raise UnreadableCheckpoint(directory, ValueError("bad crc"))
            return super().train(runs, size, directory)

    done, failed, notes, _ = sweep(Unreadable())
    assert (done, failed) == ([0, 1, 2, 3], {})
    assert "cannot be read (bad crc)" in notes[0]
    assert list(fails[0].parent.glob("*.unreadable-*"))


def test_memory_that_does_not_suffice_to_load_a_checkpoint_is_no_damage(sweep):
    class Tight(Fake):
        def train(self, runs, size, directory):
            if size > 2:
                directory.mkdir(parents=True, exist_ok=True)
                raise UnreadableCheckpoint(directory, NO_MEMORY) from NO_MEMORY
            return super().train(runs, size, directory)

    done, failed, notes, workdir = sweep(Tight())
    assert (sorted(done), failed) == ([0, 1, 2, 3], {})
    assert not any("cannot be read" in note for note in notes)


def test_kinds_of_errors_are_found_down_the_chain():
    outer = RuntimeError("outer")
    outer.__cause__ = MemoryError()
    assert out_of_memory(outer)
    outer.__cause__ = OSError(errno.EDQUOT, "x")
    assert no_space(outer)
    assert not out_of_memory(outer)
    assert not out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    loop = RuntimeError("its own cause")
    loop.__cause__ = loop
    assert not no_space(loop)


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

    return train(
        epoch,
        states,
        epochs=4,
        steps=[3, 3],
        directory=epath.Path(directory),
        settings=[{}, {}],
        evaluate=lambda t, tree: float(tree["factors"]["U"].sum()),
        on_epoch=on_epoch,
    )


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


@pytest.mark.parametrize(
    "how",
    [
        "flipped bit",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("deleted", "cut short", "zeros", "garbage")
        ),
    ],
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
        for a, b in zip(
            jax.tree.leaves(outcome.trainable), jax.tree.leaves(expected.trainable), strict=True
        ):
            np.testing.assert_array_equal(a, b, err_msg=str(file))
        np.testing.assert_array_equal(outcome.losses, expected.losses, err_msg=str(file))
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


def test_a_search_that_goes_on_tells_of_all_generations():
    told, states = [], []
    settings = SimpleNamespace(
        generations=3, population=3, mutations=1, crossovers=1, parents=2, limit=10, widths=(1, 2)
    )
    rows = iter(range(10**6))
    space = SimpleNamespace(
        settings=settings,
        count=lambda a: 1,
        random=lambda rng: ((next(rows),),),
        mutate=lambda rng, a: ((next(rows),),),
        cross=lambda rng, a, b: ((next(rows),),),
    )

    def save(state):
        states.append(json.loads(json.dumps(state)))

    def run(state):
        told.clear()
        fitness = lambda a: float(a[0][0])  # noqa: E731
        search(space, fitness, 0, lambda: state, save, lambda *told_of: told.append(told_of))

    run(None)
    whole = list(told)
    run(states[0])
    assert [done for done, _ in told] == [done for done, _ in whole] == [1, 2, 3]
    assert told[0] == whole[0]


def read_scalars(folder):
    """{tag: [(step, value)]} as TensorBoard has them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_each_epoch_once_however_often_a_run_was_stopped(tmp_path):
    pytest.importorskip("tensorboardX")
    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt", seeds=(0, 1))
    config.fact_tt = ConfigDict({"rank": 4, "scales": (0.1, 1.0)})
    one, other = make_plan(config)
    runs = [Run(one, "selection", one.candidates[1]), Run(other, "final", other.candidates[0])]
    losses = [[0.5**e, 2 * 0.5**e] for e in range(5)]
    accuracies = [[float("nan"), float("nan")]] * 4 + [[50.0, 75.0]]
    for stopped_after in (2, 4, 5):  # a run that goes on tells of all epochs
        scalars = Scalars(epath.Path(tmp_path), Told())
        scalars.start(runs, 5)
        for e in range(stopped_after):
            scalars.epoch(e + 1, losses[e], accuracies[e])
        if stopped_after == 5:
            scalars.close()  # the others were killed
    names = {"selection scale=1": 0, "final": 1}
    assert {p.name for p in tmp_path.glob("tensorboard/*/*")} == set(names)
    for path in tmp_path.glob("tensorboard/*/*"):
        t = names[path.name]
        scalars = read_scalars(path)
        assert scalars["loss"] == [(e + 1, pytest.approx(losses[e][t])) for e in range(5)]
        assert scalars["accuracy"] == [(5, accuracies[4][t])]


def test_a_full_disk_does_not_hang_tensorboards_writer(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    from tensorboardX import record_writer

    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt")
    (cell,) = make_plan(config)
    scalars = Scalars(epath.Path(tmp_path), Told())
    scalars.start([Run(cell, "final", cell.candidates[0])], 100)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "flush", full)
    for e in range(20):  # more than fit into a queue
        with pytest.raises(OSError, match="No space") as error:
            scalars.epoch(e, [1.0], [1.0])
    assert no_space(error.value)
    scalars.close()


def test_the_bars_are_drawn_while_imports_are_lazy():
    """TFDS's import does this; the thread would die, and print a traceback."""
    import builtins
    from io import StringIO

    from rich.console import Console

    from fact_jax.cli.live import Bars

    screen = StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=120))
    bars.expect(10, 4, 1)
    real = builtins.__import__

    def refuse(name, globals=None, locals=None, fromlist=(), level=0):
        if level:
            raise ValueError(f"Relative import statements not supported ({name}).")
        return real(name, globals, locals, fromlist, level)

    with pytest.MonkeyPatch.context() as patch, bars.progress:
        patch.setattr(builtins, "__import__", refuse)
        time.sleep(0.5)  # a few times, in its own thread
        patch.undo()
        bars.progress.update(bars._all, completed=7)
        time.sleep(0.5)
        assert "7/10" in screen.getvalue()  # it still draws
        bars.start([SimpleNamespace(cell=SimpleNamespace(name="a"), stage="final")] * 2, 5)
        time.sleep(0.5)
    assert "cells: 1 done, 4 to do" in screen.getvalue()
    assert "cells: 1 done, 2 running, 2 to do" in screen.getvalue()
