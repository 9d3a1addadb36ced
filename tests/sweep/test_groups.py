"""Groups of cells that train together, and what becomes of the others when some fail."""

import errno
import functools
import itertools
import json
import threading
import time
import weakref
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict
from report_results import result
from told import Told

from configs import quickstart
from fact_jax import UserError
from fact_jax.sweep import claims
from fact_jax.sweep import group as group_module
from fact_jax.sweep import runner as runner_module
from fact_jax.sweep.faults import no_space, out_of_memory
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Failure, Trained
from fact_jax.sweep.store import Store, Unwritable
from fact_jax.training.checkpoint import UnreadableCheckpoint
from fact_jax.training.trial import NonFiniteLoss

NO_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")


@pytest.mark.parametrize(("rank", "named"), [(16, False), (500, True)])
def test_advice_for_want_of_memory_names_a_rank_beyond_the_vit_s_width(rank, named):
    config = quickstart.get_config()
    config.methods, config.fact_tt.rank = "fact_tt", rank
    text = str(runner_module._advised(NO_MEMORY, make_plan(config)[0]))
    words = "a smaller --config.fact_tt.rank (it is 500, and the ViT's width 128), --config.remat"
    assert (words in text) == named


class Fake:
    """A stand-in for the trainer: no cell is trained, and some fail.

    `fails(seeds, size)` gives the error of a training, or None; `diverging` are (seed, scale). The
    accuracy is the scale, and 0 above 10.
    """

    weights_sha256, padded_classes = "0" * 64, 397

    def __init__(self, fails=lambda seeds, size: None, diverging=(), size=4):
        self.fails, self.diverging, self.size = fails, diverging, size
        self.calls, self.runs, self.directories = [], [], []

    @property
    def feed(self):
        return self

    def check_devices(self, batch_size, size):
        pass

    def group_size(self, stages, cells):
        return self.size

    def data(self, task):
        return SimpleNamespace(provenance={"used_version": "1", "fingerprint": task})

    def task(self, name):
        return SimpleNamespace(multi_label=False)

    def train(self, runs, size, directory):
        seeds = [run.cell.seed for run in runs]
        self.calls.append((seeds, size))
        self.runs.append([(run.cell.seed, run.candidate.scale) for run in runs])
        self.directories.append((f"{directory.parent.name}/{directory.name}", directory.exists()))
        directory.mkdir(parents=True, exist_ok=True)
        if error := self.fails(seeds, size):
            raise error
        return [self.trained(run, run.candidate.scale) for run in runs]

    def trained(self, run, scale):
        diverged = (run.cell.seed, scale) in self.diverging
        error = NonFiniteLoss("left the finite numbers") if diverged else None
        return Trained(run, {}, [0.0], [scale if scale <= 10 else 0.0], error, 1, 1, {})


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch):
    """A stack of runs asks the stand-in."""

    def stack(trainer, runs, size):
        return SimpleNamespace(train=functools.partial(trainer.train, runs, size))

    monkeypatch.setattr(group_module, "RunStack", stack)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """``sweep(trainer, seeds, only)``: ({seed: result}, {seed: error}, notes, work directory)."""

    def store_result(store, trainer, trained, selection, **_):
        cell, scale = trained.run.cell, trained.run.candidate.scale
        more = {"factor_file_bytes": 0, "scale": scale, "selection": selection}
        out = result(cell.task, cell.method_name, cell.seed, **more)
        out["settings"] = cell.stored_settings(trainer.weights_sha256)
        store.write(store.factors_path(cell.name), b"")
        store.write_json(store.result_path(out["cell"]), out)
        return Result.from_json(store.result_path(out["cell"]))

    monkeypatch.setattr(group_module, "store_result", store_result)

    def run(trainer, seeds=4, only=(), scales=None, stop_after=None):
        """Stops after so many cells, while the others of their group are not stored."""
        config = quickstart.get_config()
        config.update(tasks="digits", methods="fact_tt", seeds=tuple(range(seeds)))
        config.fact_tt = ConfigDict({"rank": 4, **({"scales": scales} if scales else {})})
        cells = make_plan(config)
        told = Told()
        store, command = Store(workdir, told.note), lambda name: f"run --cells={name}"
        runner = Runner(read_settings(config), store, told, command, trainer)
        before = {c.name: r for c in cells if (r := runner.finished(c)) is not None}
        running = runner.run(cells, before, [cells[i].name for i in only])
        outcomes = list(itertools.islice(running, stop_after))
        seed_of = {cell.name: cell.seed for cell in cells}
        failed = [(seed_of[o.cell], o.error) for o in outcomes if isinstance(o, Failure)]
        done = [seed_of[o["cell"]] for o in outcomes if not isinstance(o, Failure)]
        assert len(failed) == len(dict(failed))  # each is told of once
        assert len(done) == len(set(done))
        return done, dict(failed), told.notes, workdir

    workdir = tmp_path / "work"
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


def test_a_cell_that_failed_since_the_command_began_is_not_tried_again(tmp_path):
    """A copy loads weights and data for a while, in which another stores a failure."""
    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt", seeds=(0,))
    (cell,) = make_plan(config)
    store, trainer = Store(tmp_path, print), Fake()
    before = {"another cell": None, cell.name: "yesterday"}
    runner = Runner(read_settings(config), store, Told(), trainer=trainer, failed_before=before)
    store.write_json(store.failure_path(cell.name), {"message": "It broke.", "when": "now"})
    (failed,) = runner.run([cell], {})
    assert (failed.cell, str(failed.error)) == (cell.name, "It broke. (another run)")
    assert trainer.calls == []


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
    assert first.wait(60)
    done, *_ = sweep(Slow(), only=(1,))
    thread.join()
    assert 1 in done
    assert most == [1] * len(most)


def checkpoints(workdir):
    return [p for p in (workdir / "checkpoints").glob("*/*") if "unreadable" not in p.name]


def test_a_sweep_that_is_done_does_not_look_at_its_data(sweep, monkeypatch):
    assert sweep(Fake())[0] == [0, 1, 2, 3]
    monkeypatch.setattr(Runner, "groups", lambda self, cells: pytest.fail("looked at the data"))
    assert sweep(Fake())[:2] == ([], {})


def test_groups_train_together_and_leave_no_checkpoints(sweep, monkeypatch):
    """Between groups, programs may be forgotten."""
    trainer, called_after = Fake(size=2), []
    monkeypatch.setattr(
        runner_module, "free_programs", lambda: called_after.append(len(trainer.calls))
    )
    done, failed, _, workdir = sweep(trainer, 3)
    assert trainer.calls == [([0, 1], 2), ([2], 2)]
    assert (done, failed) == ([0, 1, 2], {})
    assert called_after == [1, 2]
    assert not checkpoints(workdir)


def test_a_group_that_was_stopped_while_it_was_stored_is_found_again(sweep):
    assert sweep(Fake(size=2), 3, stop_after=1)[0] == [0]
    trainer = Fake(size=2)
    done, _, _, workdir = sweep(trainer, 3)
    assert trainer.calls == [([0, 1], 2), ([2], 2)]
    assert [found for _, found in trainer.directories] == [True, False]
    assert done == [1, 2]
    assert not checkpoints(workdir)


def test_all_candidates_of_a_group_then_its_final_trainings(sweep):
    trainer = Fake(diverging=[(1, 10.0)], size=2)
    done, failed, _, workdir = sweep(trainer, 3, scales=(1.0, 10.0, 100.0))
    assert trainer.runs == [
        [(0, 1.0), (0, 10.0)],
        [(0, 100.0), (1, 1.0)],
        [(1, 10.0), (1, 100.0)],
        [(0, 10.0), (1, 1.0)],  # the candidate that diverged is not chosen
        [(2, 1.0), (2, 10.0)],
        [(2, 100.0)],
        [(2, 10.0)],
    ]
    results = [json.loads(p.read_text()) for p in sorted((workdir / "results").iterdir())]
    assert [r["scale"] for r in results] == [10.0, 1.0, 10.0]
    assert results[0]["selection"] == {"scale=1": 1.0, "scale=10": 10.0, "scale=100": 0.0}
    assert results[1]["selection"] == {"scale=1": 1.0, "scale=10": None, "scale=100": 0.0}
    assert (done, failed) == ([0, 1, 2], {})


def test_checkpoints_lie_where_they_did(sweep):
    """A sweep that 8fa6322 began finds them."""
    trainer = Fake(size=2)
    sweep(trainer, 3, scales=(1.0, 10.0))
    assert [directory for directory, _ in trainer.directories] == [
        "digits-fact_tt-seed0-and-1-more/selection-48e5d3ff0a20",
        "digits-fact_tt-seed1-and-1-more/selection-d50eac0179a0",
        "digits-fact_tt-seed0-and-1-more/final-d30f59f1ee68",
        "digits-fact_tt-seed2-and-1-more/selection-f71af1a57354",
        "digits-fact_tt-seed2/final-0bfcdd906bc9",
    ]


def test_a_cell_without_a_candidate_left_fails(sweep):
    done, failed, *_ = sweep(Fake(diverging=[(0, 1.0), (0, 2.0)]), 3, scales=(1.0, 2.0))
    assert (done, list(failed)) == ([1, 2], [0])


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


@pytest.mark.parametrize(
    "at_fault",
    [
        lambda: Fake(lambda seeds, size: ValueError("bad") if 2 in seeds else None),
        lambda: Fake(diverging=[(2, 1.0)]),
    ],
    ids=["raises", "diverges"],
)
def test_a_cell_is_not_blamed_for_another_that_was_not_asked_for(sweep, at_fault):
    done, failed, *_ = sweep(at_fault(), only=(1,))
    assert (done, failed) == ([1], {})
    done, failed, *_ = sweep(at_fault())
    assert (done, list(failed)) == ([0, 3], [2])


def test_what_was_trained_along_is_kept_for_those_that_were_not_asked_for(sweep):
    *_, workdir = sweep(Fake(), only=(1,))
    assert checkpoints(workdir)
    sweep(Fake())
    assert not checkpoints(workdir)


def test_a_cell_that_diverges_keeps_its_checkpoints_and_has_no_traceback(sweep):
    done, failed, _, workdir = sweep(Fake(diverging=[(0, 1.0)]))
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


def test_tasks_that_learn_a_dictionary_are_not_split_for_want_of_memory(tmp_path):
    """The tasks learn one dictionary, and parts of them would learn others."""
    config = quickstart.get_config()
    config.update(tasks="digits,fashion", methods="fact_tt")
    config.fact_tt = ConfigDict({"rank": 4, "shared": "learn"})
    cells, trainer = make_plan(config), Fake(lambda seeds, size: NO_MEMORY)
    runner = Runner(read_settings(config), Store(tmp_path, print), Told(), trainer=trainer)
    outcomes = list(runner.run(cells, {}))
    assert [type(outcome) for outcome in outcomes] == [Failure] * 2
    assert trainer.calls == [([0, 0], 2)]
    assert "Try --config.remat=block" in str(outcomes[0].error)


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
    done, failed, *_ = sweep(trainer)
    assert (done, list(failed)) == ([0, 2, 3], [1])
    assert trainer.calls[:2] == [([0, 1, 2, 3], 4)] * 2
    assert [seeds for seeds, _ in trainer.calls[2:]] == [[0], [1], [1], [2], [3]]


def test_one_cell_too_large_for_memory_fails_alone(sweep):
    done, failed, _, _ = sweep(Fake(lambda seeds, size: NO_MEMORY if 0 in seeds else None))
    assert (sorted(done), list(failed)) == ([1, 2, 3], [0])


def test_a_failed_cell_does_not_keep_what_filled_the_memory(sweep):
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

    _, failed, *_ = sweep(Fake(fail), 1)
    assert list(failed) == [0]  # and with it its traceback
    assert [ref() for ref in held] == [None] * len(held)


def test_a_full_disk_stops_the_sweep_and_fails_no_cell(sweep, tmp_path):
    words = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: write: No space left on device")
    for error in (OSError(errno.ENOSPC, "No space left on device"), words):
        with pytest.raises(Unwritable, match="is full"):
            sweep(Fake(lambda seeds, size, error=error: error))
    assert not list(tmp_path.glob("work/failures/*"))
    assert sweep(Fake())[0] == [0, 1, 2, 3]


def test_a_full_disk_elsewhere_is_not_the_work_directorys(sweep):
    def cache(seeds, size):
        error = UserError("Cannot write the decoded split to /cache: free the space")
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
        return error

    with pytest.raises(UserError, match="^Cannot write the decoded split to /cache"):
        sweep(Fake(cache))


def test_a_claim_that_cannot_be_made_is_a_message(sweep, monkeypatch):
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
    assert not no_space(PermissionError(errno.EACCES, "/data/x"))
    loop = RuntimeError("its own cause")
    loop.__cause__ = loop
    assert not no_space(loop)
