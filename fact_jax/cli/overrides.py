"""Settings of the command line that the config's other settings win over."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fact_jax.errors import UserError
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import Given, resolve
from fact_jax.sweep.settings import CONSISTENCY_NUMBERS, GRID, METHOD_SETTINGS
from fact_jax.tuning import METHODS, Method

_LISTS = {one: several for several, one in GRID.items()}
_SHOWN = 8  # settings in a message


def overridden(sweep_config: ConfigDict, given: Mapping[str, Any]) -> list[str]:
    """Finds what wins over the settings `given` on the command line, by their paths in the config.

    Returns:
      a sentence for each setting that acts in some of the cells it is for.

    Raises:
      UserError: a setting acts nowhere. The message has the line that does.
    """
    cells = make_plan(sweep_config)
    pairs = list(dict.fromkeys((cell.task, cell.method_name) for cell in cells))
    acting = {pair: resolve(sweep_config, pair[1], pair[0]).acting() for pair in pairs}
    notes = []
    for name, value in given.items():
        path = re.sub(r"(\[\d+\])+$", "", name)  # of an element of a list
        first, *rest = path.split(".")
        line = f"--config.{name}={_text(value)}"
        leaf = path.rpartition(".")[2]
        idle = ""
        if leaf == "eval_every" and sweep_config.protocol == "val":
            idle = "protocol 'val' tests the last epoch only"
        if leaf in ("scale", "scales") and first in METHODS and not _has_scale(METHODS[first]):
            idle = f"{first} has no scale"
        of_method = [c for c in cells if not rest or c.method_name == first]
        if GRID.get(leaf, leaf) in CONSISTENCY_NUMBERS and not any(
            cell.settings.consistency for cell in of_method
        ):
            idle = "config.consistency is empty"
        if idle:
            notes.append(f"{line} changes nothing: {idle}.")
        if not rest and first not in METHOD_SETTINGS:  # nothing but the command line sets it again
            continue
        winners, acts = _winners(path, value, acting)
        if winners:
            places = [f"config.{w.path} ({_text(w.value)})" for w in winners]
            words = f"{', '.join(places[:_SHOWN])}{' and others' * (len(places) > _SHOWN)}"
            advice = _advice(winners, value)
            if not acts:
                raise UserError(f"{line} changes nothing. It gives way to {words}. {advice}")
            if not idle:
                notes.append(f"{line} acts in some cells only; others have {words}. {advice}")
        elif not acts:
            raise UserError(
                f"{line} changes nothing: no cell of this sweep has it. config.methods is "
                f"{sweep_config.methods!r}, and config.tasks is {sweep_config.tasks!r}."
            )
    return notes


def _has_scale(method: type[Method]) -> bool:
    return bool(method.__dataclass_fields__["scale"].metadata.get("acts", True))


def _winners(
    path: str, value: Any, acting: Mapping[tuple[str, str], Mapping[str, Given]]
) -> tuple[list[Given], bool]:
    """Values that act in the place of the one at `path`, and whether that one acts, too.

    A value that equals the one given is not in its way.
    """
    *owner, leaf = path.split(".")
    winners, acts = {}, False
    for (task, method), settings in acting.items():
        if owner and owner[0] not in (method, *method.split("+")):
            continue
        if len(owner) == 3 and owner[2] != task:  # METHOD.per_task.TASK
            continue
        if any(g.path == path or g.path.startswith(f"{path}.") for g in settings.values()):
            acts = True
            continue
        others = (_LISTS.get(leaf, leaf), GRID.get(leaf, leaf))
        names = dict.fromkeys((leaf, *others, f"{owner[0] if owner else method}.{leaf}"))
        for winner in (settings[name] for name in names if name in settings):
            if winner.value in (value, [value], (value,)):
                acts = True
            else:
                winners[winner.path] = winner
    return list(winners.values()), acts


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    return str(value)


def _advice(winners: list[Given], value: Any) -> str:
    """The settings of the command line that do act."""
    lines = []
    for winner in winners[:_SHOWN]:
        if "+" in winner.path:  # ml_collections takes no such name from a command line
            lines.append(f"in the config's file {winner.path!r}")
            continue
        listed, wants_list = isinstance(value, list | tuple), winner.path.split(".")[-1] in GRID
        fitting = value if listed == wants_list else value[0] if listed else (value,)
        lines.append(f"--config.{winner.path}={_text(fitting)}")
    return f"Set {' '.join(lines)}"
