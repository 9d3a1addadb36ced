"""Parts of a study: tasks that have a table, an average and figures together."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fact_jax.data import VTAB, Task, get_task

GROUPS = ("natural", "specialized", "structured")  # of VTAB-1K
_SHORT = {  # headings of columns; the other tasks have short names
    "oxford_flowers102": "flowers",
    "oxford_iiit_pet": "pets",
    "caltech101": "caltech",
    "patch_camelyon": "camelyon",
    "diabetic_retinopathy": "retino.",
    "clevr_count": "clevr count",
    "clevr_dist": "clevr dist",
    "dsprites_loc": "dspr. loc",
    "dsprites_ori": "dspr. ori",
    "smallnorb_azi": "norb azi",
    "smallnorb_ele": "norb ele",
}


class Section(NamedTuple):
    """Tasks that have a table, an average and figures together.

    The headline average, named `headline`, is the mean of the means of the `groups`. `whole` says
    whether these are all of VTAB's 19 tasks. `measure` is what the numbers are, as `measure_of`
    has it.
    """

    name: str
    title: str
    groups: dict[str, list[str]]
    headline: str
    whole: bool = False
    measure: str = "accuracy"

    @property
    def tasks(self) -> list[str]:
        return [task for group in self.groups.values() for task in group]

    @property
    def full_measure(self) -> str:
        """The measure as tables have it."""
        return self.measure.replace("accuracy", "top-1 accuracy")

    @property
    def digits(self) -> int:
        """Decimals of the headline, here and in the table: two for an average, one for a task."""
        return 2 if len(self.tasks) > 1 else 1

    @property
    def units(self) -> list[list[str]]:
        """The units of a test over tasks."""
        return units_of(self.tasks)

    @property
    def averages(self) -> dict[str, list[list[str]]]:
        """Columns of averages: for each name the groups that go into it, the headline first."""
        columns = {self.headline: list(self.groups.values())} if len(self.tasks) > 1 else {}
        if self.whole:
            columns["mean of 19"] = [self.tasks]
            columns |= {group: [tasks] for group, tasks in self.groups.items()}
        return columns


def units_of(tasks: Iterable[str]) -> list[list[str]]:
    """The tasks by their pictures: two tasks on the same pictures are no two draws of a task."""
    units: dict[str, list[str]] = {}
    for name in tasks:
        task = get_task(name)
        units.setdefault(task.folder or task.builder, []).append(name)
    return [*units.values()]


def measure_of(tasks: Sequence[Task]) -> str:
    """Names what the numbers of these tasks are: "accuracy", "mAP" where an image has several
    labels, or "accuracy or mAP"."""
    several = {task.multi_label for task in tasks}
    names = [name for kind, name in ((False, "accuracy"), (True, "mAP")) if kind in several]
    return " or ".join(names)


def sections(tasks: Sequence[Task]) -> list[Section]:
    """Sections of all tasks but few-shot tasks, which have `few_shot_section`."""
    parts = []
    if names := [t.name for t in tasks if t.name in VTAB]:
        title = f"VTAB-1K, {len(names)} of its {len(VTAB)} tasks"
        whole = len(names) == len(VTAB)
        parts.append(vtab_section() if whole else plain_section("vtab", title, names))
    for name, title in (("offline", "Offline suite (not VTAB-1K)"), ("own", "Own data sets")):
        if some := [t for t in tasks if t.group == name]:
            parts.append(plain_section(name, title, [t.name for t in some], measure_of(some)))
    return parts


def vtab_section() -> Section:
    """The section of all 19 tasks of VTAB-1K."""
    groups = {g: [t.name for t in VTAB.values() if t.group == g] for g in GROUPS}
    return Section("vtab", "VTAB-1K", groups, "group mean", whole=True)


def plain_section(name: str, title: str, tasks: list[str], measure: str = "accuracy") -> Section:
    """A section without groups."""
    headline = f"mean of {len(tasks)}" if len(tasks) > 1 else f"{measure} on {tasks[0]}"
    return Section(name, title, {"": tasks}, headline, measure=measure)


def few_shot_section(tasks: Sequence[Task]) -> Section | None:
    """Section of all few-shot tasks, whose groups are the data sets; None if there are none."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        if task.few_shot:
            groups.setdefault(task.dataset, []).append(task.name)
    if not groups:
        return None
    headline = f"mean of {len(groups)} data sets" if len(groups) > 1 else "mean over the shots"
    return Section("fewshot", "Few-shot classification", groups, headline)


def short_name(task: str) -> str:
    """A task's name as the heads of wide tables have it."""
    return _SHORT.get(task, task)
