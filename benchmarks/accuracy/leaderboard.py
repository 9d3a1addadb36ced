"""The leaderboard in README and docs: accuracy against the bytes of a task, from the study.

    bash runs/leaderboard.sh          # all pages and pictures of the study, with this program in it
    python -m benchmarks.leaderboard  # the tables and the picture

An arm is on the board if it has all tasks with at least one seed, and if a prediction takes one
pass: ensembles are left out. It is on the Pareto front if no
arm whose tasks take at most as many bytes is better. Accuracy is the mean of the groups' means on
test in %, with the standard error over the seeds; bytes are those of a task's file with its head.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy import study_record
from benchmarks.accuracy.study_arms import Arm, arms_of, groups_of, pareto
from benchmarks.common import markdown, numbers, write_tables
from benchmarks.plots import plot_leaderboard
from fact_jax.report.averages import Stat

README, PAGE = Path("README.md"), Path("docs/leaderboard.md")
PICTURE = Path("docs/leaderboard.png")
SHORT = 5  # rows in README
BOARD = ("main", "leaders")  # parts on the same tasks, from the same network
ENSEMBLES = ("ensemble", "together")  # forms of several passes for a picture


class Entry(NamedTuple):
    """A row of the leaderboard.

    Attributes:
      front: whether it is on the Pareto front.
    """

    arm: Arm
    accuracy: Stat
    front: bool


def entries(record: Mapping[str, Any]) -> list[Entry]:
    """The board, best first."""
    arms = {
        name: arm
        for part in BOARD
        for name, arm in arms_of(record, part).items()
        if not {cell["form"] for cell in arm.cells} & {*ENSEMBLES}
    }
    means = {name: arm.mean([*groups_of(arm.tasks).values()]) for name, arm in arms.items()}
    whole = {name: mean for name, mean in means.items() if mean is not None}
    front = pareto({name: (arms[name].bytes, mean.mean) for name, mean in whole.items()})
    board = [Entry(arms[name], mean, name in front) for name, mean in whole.items()]
    return sorted(board, key=lambda entry: (-entry.accuracy.mean, entry.arm.bytes))


def steps(front: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many of the front, best first: both ends, and the largest steps between them."""
    gains = {
        i: front[i].accuracy.mean - front[i + 1].accuracy.mean for i in range(1, len(front) - 1)
    }
    inner = sorted(gains, key=lambda i: -gains[i])[: max(0, most - 2)]
    kept = {0, len(front) - 1, *inner}
    return [entry for i, entry in enumerate(front) if i in kept]


def short_table(record: Mapping[str, Any]) -> str:
    """The Pareto front, for README; empty without any entry."""
    front = [entry for entry in entries(record) if entry.front]
    rows = [
        [e.arm.title, e.accuracy.text(1), f"{e.arm.bytes:,.0f}", numbers(e.arm.numbers)]
        for e in steps(front, SHORT)
    ]
    head = ["method", "accuracy on test, %", "bytes a task", "numbers"]
    return markdown(head, rows) if rows else ""


def whole_table(record: Mapping[str, Any]) -> str:
    """The whole board; empty without any entry."""
    rows = [
        [
            str(place),
            f"**{e.arm.title}**" if e.front else e.arm.title,
            *(e.accuracy.text(1), f"{e.arm.bytes:,.0f}", numbers(e.arm.numbers)),
            str(len(e.arm.seeds)),
        ]
        for place, e in enumerate(entries(record), 1)
    ]
    head = ["place", "method", "accuracy on test, %", "bytes a task", "numbers", "seeds"]
    return markdown(head, rows, texts=2) if rows else ""


def points(record: Mapping[str, Any]) -> list[plot_leaderboard.Point]:
    """The board as points of the picture."""
    return [
        plot_leaderboard.Point(
            arm.cells[0]["method"], arm.title, arm.bytes, mean.mean, mean.error, front
        )
        for arm, mean, front in entries(record)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    record = study_record.read(study_record.RECORD)
    write_tables(README, {"leaderboard": short_table(record)})
    write_tables(PAGE, {"leaderboard": whole_table(record)})
    plot_leaderboard.draw(points(record), PICTURE)
    print(f"Wrote {PICTURE}.")


if __name__ == "__main__":
    main()
