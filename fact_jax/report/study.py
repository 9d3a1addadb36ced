"""The subject of a report: systems (the rows of its tables), their cells, and their faults."""

import dataclasses
import functools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fact_jax.command_line import command
from fact_jax.data import VTAB, Task, get_task
from fact_jax.data.sources.lists import OWN
from fact_jax.errors import UserError
from fact_jax.report.palette import Style, styles
from fact_jax.report.records import (
    planned,
    read_config,
    read_failures,
    read_results,
)
from fact_jax.report.rows import one_row, row_labels, settings_text
from fact_jax.sweep.result import Result
from fact_jax.sweep.settings import COMPARABLE
from fact_jax.sweep.store import absolute

_SHOWN = 10  # refused files that an error names


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One row of the tables: a method with its settings, over tasks and seeds.

    Attributes:
      label: the method's name; if it has several systems, with the settings that differ.
      method: the name alone.
      results: its results, at most one for each task and seed.
      published: its row in the published results, '' if its config names none.
      style: colour, marker and line in all figures.
    """

    label: str
    method: str
    results: tuple[Result, ...]
    published: str
    style: Style

    @functools.cached_property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """Accuracy in % by task and seed."""
        by_task: dict[str, dict[int, float]] = defaultdict(dict)
        for result in self.results:
            by_task[result.task][result.seed] = result.accuracy
        return dict(by_task)


def sweep_systems(results: Sequence[Result], rows: Mapping[str, str]) -> list[System]:
    """The systems of one sweep: one for each of its methods, whose published rows `rows` names."""
    methods = list(dict.fromkeys([*rows, *(r.method for r in results)]))
    return [
        System(m, m, tuple(r for r in results if r.method == m), rows.get(m, ""), look)
        for m, look in zip(methods, styles(methods), strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Study:
    """The results, failures and published rows that a report shows.

    Attributes:
      workdirs: as given.
      results: every result; a cell in two work directories has two.
      systems: in the order of the configs.
      tasks: tasks with results, in the order of VTAB or of the configs.
      failures: cells that failed and have no result.
      missing: cells of the last configs without result or failure; None where no config is stored.
      duplicates: (cell, the work directory that counts, another one with the same cell).
      refused: a sentence for each file that was left out.
    """

    workdirs: tuple[str, ...]
    results: tuple[Result, ...]
    systems: tuple[System, ...]
    tasks: tuple[Task, ...]
    failures: tuple[dict[str, Any], ...]
    missing: tuple[str, ...] | None
    duplicates: tuple[tuple[str, str, str], ...]
    refused: tuple[str, ...] = ()

    @property
    def vtab(self) -> list[Task]:
        return [t for t in self.tasks if t.name in VTAB]

    @property
    def few_shot(self) -> list[Task]:
        return [t for t in self.tasks if t.few_shot]

    @property
    def offline(self) -> list[Task]:
        """Tasks of the offline suite."""
        return [t for t in self.tasks if t.group == "offline"]

    @property
    def own(self) -> list[Task]:
        """Tasks whose data are folders of the user's pictures."""
        return [t for t in self.tasks if t.group == "own"]

    @property
    def protocols(self) -> list[str]:
        """The protocols of the results, sorted."""
        return sorted({r.kind.protocol for r in self.results})

    @property
    def seeds(self) -> list[int]:
        return sorted({r.seed for r in self.results})

    def values(self, key: str) -> list[Any]:
        """The results' values of a setting, the most frequent first."""
        texts = Counter(json.dumps(r.settings.get(key)) for r in self.results)
        return [json.loads(text) for text, _ in texts.most_common()]


def read_study(*workdirs: str | os.PathLike[str]) -> Study:
    """Reads work directories. Raises UserError if there is nothing to report."""
    refused: list[str] = []
    workdirs = tuple({absolute(workdir): workdir for workdir in reversed(workdirs)}.values())[::-1]
    results = read_results(*workdirs, refuse=refused.append)
    failures = read_failures(*workdirs, refuse=refused.append)
    if not results and not failures:
        raise UserError(
            f"There are no results in {', '.join(str(w) for w in workdirs)}: no cell has finished. "
            f"Run `{command('vtab', '--workdir', 'DIR')}` with the same directory first."
            + "".join(f"\n{text}" for text in refused[:_SHOWN])
        )
    configs = {os.fspath(w): read_config(w, refused.append) for w in dict.fromkeys(workdirs)}
    plans = {name: planned(config) for name, config in configs.items() if config}
    order = {m: None for methods, _, _ in plans.values() for m in methods}
    order |= {r.method: None for r in results}
    systems, duplicates = _systems(results, list(order), configs)
    task_order = {t: None for t in VTAB}
    task_order |= {t: None for _, tasks, _ in plans.values() for t in tasks}
    task_order |= {r.task: None for r in results}
    present = {r.task for r in results}
    labelled = {r.task for r in results if r.label_precision is not None}
    done = {(r.workdir, r.cell) for r in results}
    done |= {(f["workdir"], f["cell"]) for f in failures}
    missing = [
        cell
        for name, (methods, tasks, seeds) in plans.items()
        for cell in (f"{t}-{m}-seed{s}" for t in tasks for m in methods for s in seeds)
        if (name, cell) not in done
    ]
    return Study(
        tuple(dict.fromkeys(os.fspath(w) for w in workdirs)),
        tuple(results),
        tuple(systems),
        tuple(
            dataclasses.replace(task, multi_label=task.name in labelled)
            for task in _sorted([get_task(t) for t in task_order if t in present])
        ),
        tuple(failures),
        tuple(missing) if plans else None,
        tuple(duplicates),
        tuple(refused),
    )


def _sorted(tasks: list[Task]) -> list[Task]:
    """The tasks with few-shot tasks last, by data set and shots; the others keep their order."""
    sets = list(dict.fromkeys(t.dataset for t in tasks))
    order = {t.name: (sets.index(t.dataset), t.few_shot.shots) for t in tasks if t.few_shot}
    return sorted(tasks, key=lambda t: order.get(t.name, (-1, 0)))


def _systems(
    results: list[Result], order: list[str], configs: dict[str, dict[str, Any] | None]
) -> tuple[list[System], list[tuple[str, str, str]]]:
    """The systems, and the cells that occur twice.

    `rows.one_row` says which results of a method belong together.
    """
    duplicates, parts_of = [], {}
    for method in order:
        parts: list[dict[tuple[str, int], Result]] = []
        by_workdir: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            if result.method == method:
                by_workdir[result.workdir].append(result)
        for of_workdir in by_workdir.values():
            part = next((p for p in parts if one_row(list(p.values()), of_workdir)), None)
            if part is None:
                parts.append(part := {})
            for result in of_workdir:
                key = result.task, result.seed
                if key in part:
                    twice = (result.cell, part[key].workdir, result.workdir)
                    duplicates.append(twice)
                else:
                    part[key] = result
        if parts:
            parts_of[method] = parts
    systems: list[System] = []
    looks = iter(styles(method for method, parts in parts_of.items() for _ in parts))
    for method, parts in parts_of.items():
        labels = row_labels(method, [next(iter(part.values())) for part in parts])
        for label, part in zip(labels, parts, strict=True):
            rows = tuple(part.values())
            config = configs.get(rows[0].workdir) or {}
            settings = config.get(method)
            published = settings.get("published") if isinstance(settings, dict) else ""
            published = published if isinstance(published, str) else ""
            systems.append(System(label, method, rows, published, next(looks)))
    return systems, duplicates


def mixed_settings(study: Study) -> tuple[dict[str, list[Any]], list[str]]:
    """Settings that differ although they should be equal.

    Returns:
      The settings that differ within a table, with their values, and the rows whose seeds of one
      task were made with different settings.
    """
    shared: dict[str, list[Any]] = {}
    for tasks in (study.vtab, study.offline, study.own, study.few_shot):
        names = {task.name for task in tasks}
        table = dataclasses.replace(
            study, results=tuple(r for r in study.results if r.task in names)
        )
        for key in (*COMPARABLE, "weights_sha256"):
            if key != "protocol" and len(values := table.values(key)) > 1:  # has another notice
                shared[key] = values
    uneven = []
    for system in study.systems:
        by_task: dict[str, set[str]] = defaultdict(set)
        for result in system.results:
            by_task[result.task].add(settings_text(result))
        if any(len(texts) > 1 for texts in by_task.values()):
            uneven.append(system.label)
    return shared, uneven


def sources_of(study: Study, task: Task) -> dict[tuple[str, ...], dict[str, Any]]:
    """The sources that a task's pictures came from, each with its record in a result.

    One's own pictures are told apart by their fingerprint.
    """
    sources = {}
    for result in study.results:
        if result.task == task.name:
            names = ["builder", "used_version", "jpeg_quality"]
            names += ["fingerprint"] if result.data.get("used_version") in OWN else []
            sources[tuple(str(result.data.get(name)) for name in names)] = result.data
    return sources
