"""The arms of the study, as its tables and its leaderboard read them from the record."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.accuracy.study_plan import NUM_LEADERS, PARTS
from benchmarks.common import NAMES
from configs import study
from fact_jax.data.tables.offline import OFFLINE_GROUPS
from fact_jax.report.averages import Accuracies, Stat, average
from fact_jax.report.sections import units_of
from fact_jax.report.statistics import Comparison, compare
from fact_jax.sweep.plan import task_names
from fact_jax.sweep.result import candidate_settings
from fact_jax.tuning import METHODS

Cell = Mapping[str, Any]
# Of arms that are called neither as in the comparison nor like their class.
_TITLES = {
    "metatt_heads": "MetaTT, heads",
    "metatt_tasks": "MetaTT, tasks",
    "uni_lora": "Uni-LoRA",
    "adapter_plus": "Adapter+",
    "noah_subnet": "NOAH, no search",
    "fact_tt_smallest": "FacT-TT, rank 2",
    "fact_tk_smallest": "FacT-TK, rank 4",
    "fact_tt_together": "the leaders together",
}
# What a form adds to the name of a method.
_FORMS = {
    "pace": "PACE as for CIFAR",
    "pacegrid": "PACE",
    "bits4": "4 bits",
    "bits1": "1 bit",
    "rank4": "rank 4",
    "adaptive": "ranks 16, 8, 4",
    "rounded8": "rounded to rank 8",
    "rounded4": "rounded to rank 4",
    "ensemble": "3 seeds together",
}


def title_of(arm: str) -> str:
    """The name of an arm in tables and pictures."""
    if title := (NAMES | _TITLES).get(arm):
        return title
    method, _, form = arm.rpartition("_")
    if form in _FORMS:
        return f"{title_of(method)}, {_FORMS[form]}"
    return METHODS[arm].__name__ if arm in METHODS else arm


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the study: a method as a form of the config has it.

    Attributes:
      name: the name in the record.
      tasks: the tasks of the study.
      cells: its cells in the record.
    """

    name: str
    tasks: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        """The name in tables."""
        return title_of(self.name)

    @functools.cached_property
    def by_task(self) -> dict[str, dict[int, float]]:
        """Accuracy in % by task and seed, of all cells."""
        values: dict[str, dict[int, float]] = {}
        for cell in self.cells:
            values.setdefault(cell["task"], {})[cell["seed"]] = cell["accuracy"]
        return values

    @functools.cached_property
    def seeds(self) -> list[int]:
        """The seeds that all tasks have; empty if a task has no cell."""
        seeds = [set(self.by_task.get(task, ())) for task in self.tasks]
        return sorted(set.intersection(*seeds)) if seeds else []

    @functools.cached_property
    def accuracies(self) -> Accuracies:
        """Accuracy in % by task and seed, of the seeds that all tasks have."""
        if not self.seeds:
            return {}
        return {
            task: {seed: self.by_task[task][seed] for seed in self.seeds} for task in self.tasks
        }

    def mean(self, groups: Sequence[Sequence[str]]) -> Stat | None:
        """Mean of the groups' means with its standard error over the seeds; None if incomplete."""
        return average(self.accuracies, groups)

    @property
    def numbers(self) -> float:
        """Numbers that a task stores, without the head, mean over the tasks."""
        return self._mean_of("num_factors")

    @property
    def bytes(self) -> float:
        """Bytes of a task's file with its head, mean over the tasks."""
        return self._mean_of("factor_file_bytes")

    def _mean_of(self, field: str) -> float:
        """Mean over the tasks of a field of the cells, however many seeds each task has."""
        by_task: dict[str, list[float]] = {}
        for cell in self.cells:
            by_task.setdefault(cell["task"], []).append(cell[field])
        return statistics.fmean(map(statistics.fmean, by_task.values()))

    @functools.cached_property
    def chosen(self) -> dict[str, float]:
        """Accuracy on val200 of the chosen rate, by task, of the tasks that have chosen."""
        return {
            cell["task"]: max(score for score in cell["selection"].values() if score is not None)
            for cell in self.cells
            if cell["selection"]
        }

    @property
    def validation(self) -> float | None:
        """Mean of `chosen` over the tasks; None if a task has none."""
        if not self.chosen.keys() >= set(self.tasks):
            return None
        return statistics.fmean(self.chosen.values())

    @property
    def sampling_error(self) -> float:
        """Standard error of the mean of the groups by the drawing of the test images, in points.

        As if the images of all tasks were drawn one by one; of the seeds' mean accuracies.
        """
        groups = groups_of(self.tasks).values()
        images = {cell["task"]: cell["num_test"] for cell in self.cells}
        variance = 0.0
        for group in groups:
            for task in group:
                mean = statistics.fmean(self.accuracies[task].values())
                share = 1 / (len(groups) * len(group))
                variance += share**2 * mean * (100 - mean) / images[task]
        return math.sqrt(variance)

    @property
    def at_the_edge(self) -> dict[str, int]:
        """The number of tasks that took the lowest, and the highest rate of the grid."""
        counts = {"lowest": 0, "highest": 0}
        for cell in self.cells:
            rates = [candidate_settings(label)["learning_rate"] for label in cell["selection"]]
            if rates:
                counts["lowest"] += math.isclose(cell["learning_rate"], min(rates))
                counts["highest"] += math.isclose(cell["learning_rate"], max(rates))
        return counts


def groups_of(tasks: Iterable[str]) -> dict[str, list[str]]:
    """These tasks by their groups, groups without a task left out."""
    tasks = list(tasks)
    groups = {name: [t for t in members if t in tasks] for name, members in OFFLINE_GROUPS.items()}
    return {name: members for name, members in groups.items() if members}


def arms_of(record: Mapping[str, Any], part: str) -> dict[str, Arm]:
    """The arms of a part that have cells, by their names, in the record's order."""
    tasks = tuple(task_names(study.get_config(PARTS[part][0]).tasks))
    cells: dict[str, list[Cell]] = {}
    for cell in record["cells"]:
        if cell["part"] == part and cell["task"] in tasks:
            cells.setdefault(cell["arm"], []).append(cell)
    return {name: Arm(name, tasks, tuple(some)) for name, some in cells.items()}


def leaders_of(record: Mapping[str, Any]) -> list[str]:
    """The methods of the part `leaders`: FacT-TT, and the best others by their means on val200.

    The linear probe and full fine-tuning do not count. Empty, if a method of the main part has no
    validation accuracy on some task yet: the leaders might be others in the end.
    """
    arms = arms_of(record, "main")
    methods = study.get_config("main").methods.split(",")
    scores = {name: arms[name].validation if name in arms else None for name in methods}
    if None in scores.values():
        return []
    others = [name for name in methods if name not in ("fact_tt", "linear", "full")]
    others.sort(key=lambda name: -(scores[name] or 0.0))
    return ["fact_tt", *others[: NUM_LEADERS - 1]]


def compared(a: Arm, b: Arm) -> Comparison | None:
    """The first arm less the second, on the tasks and seeds that both have; None without any.

    An ensemble is made of all seeds, and is compared with all. The p-values are those of this
    comparison alone; Wilcoxon's test counts `units_of` the tasks.
    """
    groups, one, other = [*groups_of(a.tasks).values()], a.accuracies, b.accuracies
    if "ensemble" not in {cell["form"] for cell in (*a.cells, *b.cells)}:
        common = {*a.seeds} & {*b.seeds}
        one, other = (_of_seeds(accuracies, common) for accuracies in (one, other))
    if not (one and other):
        return None
    (pair,) = compare({a.name: one, b.name: other}, groups, units_of(a.tasks))
    if pair.a == a.name:
        return pair
    low, high = pair.interval or (0.0, 0.0)
    return pair._replace(
        a=a.name,
        b=b.name,
        wins=sum(
            statistics.fmean(one[task].values()) > statistics.fmean(other[task].values())
            for task in a.tasks
        ),
        difference=-pair.difference,
        interval=(-high, -low) if pair.interval else None,
    )


def _of_seeds(accuracies: Accuracies, seeds: Collection[int]) -> Accuracies:
    """The accuracies of these seeds; empty without any."""
    if not seeds:
        return {}
    return {task: {seed: of[seed] for seed in seeds} for task, of in accuracies.items()}


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the front, cheapest first: no other point costs at most as much and is better.

    Args:
      points: cost and value by name. Of equal points the first is on the front.
    """
    front, best = [], float("-inf")
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if value > best:
            front.append(name)
            best = value
    return front
