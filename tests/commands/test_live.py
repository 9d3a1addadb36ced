"""The display while a sweep runs."""

from io import StringIO
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from fact_jax.cli.live import Bars, Compiling
from fact_jax.cli.terminal import Console

RUNS = [SimpleNamespace(cell=SimpleNamespace(name="digits-tt"), stage="final")] * 2


@pytest.fixture
def clock(monkeypatch):
    """The seconds that Bars see."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("fact_jax.cli.live.time.monotonic", lambda: clock.now)
    return clock


def shown(terminal):
    screen = StringIO()
    return screen, Bars(Console(file=screen, force_terminal=terminal, width=150))


def lines(screen):
    """The lines of a log, without their time of day."""
    return [line.split(" ", 1)[1] for line in screen.getvalue().splitlines() if line.strip()]


def test_a_log_has_a_line_a_training_and_one_a_minute(clock):
    screen, bars = shown(terminal=False)
    bars.expect(40, 2, 0)
    bars.start(RUNS, 20)
    for done, now in ((1, 30.0), (2, 61.0), (3, 90.0), (4, 122.0)):
        clock.now = now
        bars.epoch(done, [0.5, 0.1], [float("nan")] * 2)
    start, *epochs = lines(screen)
    assert start == "digits-tt and 1 more, final: 20 epochs"
    first, second = (line.split("; ") for line in epochs)
    assert first[0] == "digits-tt and 1 more, final: epoch 2 of 20, loss 0.5"
    assert first[1].startswith("10% of the sweep")
    assert second[0].endswith("epoch 4 of 20, loss 0.5")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_search_that_takes_minutes_has_no_loss_to_show(clock, terminal):
    """A generation of NOAH's search is an epoch without losses."""
    screen, bars = shown(terminal)
    bars.start(RUNS, 20)
    clock.now = 61.0
    bars.epoch(1, [], [50.0])
    if not terminal:
        assert lines(screen)[-1] == "digits-tt and 1 more, final: epoch 1 of 20"


def test_a_log_tells_of_long_compilations_only():
    screen, bars = shown(terminal=False)
    with bars:
        monitoring.record_event_duration_secs(Compiling.EVENT, 2.0)
        monitoring.record_event_duration_secs(Compiling.EVENT, 43.2)
    monitoring.record_event_duration_secs(Compiling.EVENT, 99.0)  # nobody listens any more
    assert lines(screen) == ["a program was compiled in 43 s"]


def test_a_terminal_has_bars_that_say_what_they_wait_for(clock):
    screen, bars = shown(terminal=True)
    bars.expect(40, 2, 0)
    bars.start(RUNS, 20)
    with bars.compiling:
        monitoring.record_scalar(Compiling.EVENT, 0.0)
        clock.now += 12.0
        assert "final, compiling (12 s)" in rendered(bars)
        monitoring.record_event_duration_secs(Compiling.EVENT, 12.0)
        assert "compiling" not in rendered(bars)
    bars.epoch(1, [0.5, 0.1], [float("nan")] * 2)
    assert not screen.getvalue()  # no lines between the bars


def rendered(bars):
    console = Console(width=150, file=StringIO())
    console.print(bars.progress.make_tasks_table(bars.progress.tasks))
    return console.file.getvalue()


def test_the_events_are_those_of_this_jax():
    done = []
    compiling = Compiling(lambda seconds: done.append((seconds, compiling.seconds)))
    with compiling:
        jax.jit(lambda x: x * len(done) + 17)(jnp.ones(3))
    assert done
    assert all(seconds > 0 and left == 0 for seconds, left in done)
