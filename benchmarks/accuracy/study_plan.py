"""The study's cells, in an order that is useful wherever it is cut."""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import study
from fact_jax.sweep.plan import Cell, make_plan, task_names
from fact_jax.sweep.resolution import split_names

# The forms of configs/study.py that a part consists of.
PARTS: dict[str, tuple[str, ...]] = {"main": ("main", "smallest")}


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


def cell_of(item: Item, config: ConfigDict, rate: float | None = None) -> Cell:
    """The sweep's cell of an item; with the learning rate that was chosen, if one was."""
    alone = ConfigDict(config.to_dict())
    alone.tasks, alone.methods, alone.seeds = item.task, item.method, (item.seed,)
    if rate is not None:
        alone[item.method].learning_rates = (rate,)
    (cell,) = make_plan(alone)
    return cell


def digest(cell: Cell, weights_sha256: str, fingerprint: str) -> str:
    """A short checksum of all that a cell's result depends on: settings, weights, and pictures."""
    settings = {**cell.stored_settings(weights_sha256), "fingerprint": fingerprint}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
