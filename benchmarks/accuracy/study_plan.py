"""The study's cells, in an order that is useful wherever it is cut."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import study
from fact_jax.errors import UserError
from fact_jax.sweep.plan import Cell, make_plan, task_names
from fact_jax.sweep.resolution import split_names

# The forms of configs/study.py that a part consists of.
PARTS: dict[str, tuple[str, ...]] = {
    "main": ("main", "smallest"),
    "leaders": (
        *("pace", "bits4", "bits1", "rank4", "rounded8", "rounded4", "ensemble", "together"),
        *("adaptive", "pacegrid"),
    ),
    "dinov2": ("dinov2",),
}
NUM_LEADERS = 4


class Item(NamedTuple):
    """A cell of the study: a method, as a form of configs/study.py has it, on a task, with a seed.

    Attributes:
      part: the part of the study.
      form: the form of the config.
    """

    part: str
    form: str
    method: str
    task: str
    seed: int

    @property
    def arm(self) -> str:
        """The method's name, with the form's, if that is not the part's own."""
        return arm_name(self.part, self.form, self.method)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The cell's place in the record."""
        return self.part, self.arm, self.task, self.seed


def arm_name(part: str, form: str, method: str) -> str:
    """The name of a method in a form, such as "fact_tt_smallest"; "fact_tt" in the part's own."""
    return method if form == part else f"{method}_{form}"


def items(part: str, forms: dict[str, ConfigDict]) -> Iterator[Item]:
    """The cells of a part.

    The arms of `study.FIRST` come first, in its order, then the others. In both, the first seed
    runs on all tasks before the other seeds do.
    """
    arms = [(form, name) for form, c in forms.items() for name in split_names(c.methods)]
    places = {name: i for i, name in enumerate(study.FIRST)}
    place = {arm: places.get(arm_name(part, *arm), len(places)) for arm in arms}
    arms.sort(key=place.__getitem__)
    first = [arm for arm in arms if place[arm] < len(places)]
    for wave in (first, [arm for arm in arms if arm not in first]):
        for later in (False, True):
            for form, method in wave:
                config = forms[form]
                seeds = config.seeds[1:] if later else config.seeds[:1]
                for task in task_names(config.tasks):
                    yield from (Item(part, form, method, task, seed) for seed in seeds)


def planned(part: str, leaders: Sequence[str] = ()) -> dict[str, ConfigDict]:
    """The configs of a part's forms. Those of the leaders have the methods among them that can do
    what the form asks for; without `leaders` they have none."""
    forms = {form: study.get_config(form) for form in PARTS[part]}
    if part != "leaders":
        return forms
    for form, config in forms.items():
        names = [name for name in leaders if name in split_names(config.methods)]
        config.methods = ",".join(name for name in names if _possible(config, form, name))
    return {form: config for form, config in forms.items() if config.methods}


def _possible(config: ConfigDict, form: str, method: str) -> bool:
    """Whether a method can do what a form asks for: noise needs increments, for instance."""
    task = task_names(config.tasks)[0]
    try:
        cell_of(Item("leaders", form, method, task, config.seeds[0]), config)
    except UserError:
        return False
    return True


def cell_of(
    item: Item, config: ConfigDict, chosen: Mapping[str, tuple[float, ...]] | None = None
) -> Cell:
    """The sweep's cell of an item; `chosen` stand in the place of its lists of candidates."""
    alone = ConfigDict(config.to_dict())
    alone.tasks, alone.methods, alone.seeds = item.task, item.method, (item.seed,)
    alone[item.method].update(chosen or {})
    (cell,) = make_plan(alone)
    return cell


def digest(cell: Cell, weights_sha256: str, fingerprint: str) -> str:
    """A short checksum of all that a cell's result depends on: settings, weights, and pictures."""
    settings = {**cell.stored_settings(weights_sha256), "fingerprint": fingerprint}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
