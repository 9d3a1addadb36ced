"""Published numbers: `published.json`, each row with its source and remarks, and all look-ups."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from fact_jax.sweep.result import Kind

# Rows of VTAB-1K that were chosen on validation data, as the VPT paper's are, or of which it is not
# known how they were chosen. The others have the best of their evaluations on test.
_OTHERWISE = ("full", "linear", "bitfit", "vpt_shallow", "vpt_deep", "ssf", "adaptformer")
_BEST = Kind("published", "best on test", "not recorded", None, 0)
_OTHER = Kind("published", "not recorded", "not recorded", None, 0)
_RERUN = Kind("val", "last", "validation", None, 0)
# Rows of methods whose configs name none, on VTAB-1K and few-shot.
_ROWS = {"fact_tt": "fact_tt_le16", "fact_tk": "fact_tk_le32"}
_FEW_SHOT_ROWS = {"fact_tt": "fact_tt_16", "vpt_deep": "vpt"}
# Few-shot rows for all five sets: tables and figures show them even if their method was not run.
_BASELINES = {"noah": "NOAH", "lora": "LoRA", "adapter": "Adapter", "vpt": "VPT", "glora": "GLoRA"}
_SETS = {"oxford_flowers": "oxford_flowers102"}  # of another name there


class PublishedRow(NamedTuple):
    """A published row.

    Attributes:
      name: of the row, or of the method that was run again.
      title: the name with how the numbers came about, in brackets.
      values: accuracy in % by task, or by the name of an average.
      params: numbers trained for a task without the head; None where it is not printed.
      source: a sentence or two.
      kind: how the accuracies came about.
    """

    name: str
    title: str
    values: dict[str, float]
    params: float | None
    source: str
    kind: Kind


@functools.cache
def published() -> dict[str, Any]:
    """The whole file: `vtab1k`, `vtab1k_independent_rerun`, `fewshot_fgvc`, ..."""
    text = (Path(__file__).parent / "published.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content


def vtab_rows(method: str, row: str = "") -> list[PublishedRow]:
    """Published rows of a method on VTAB-1K: the one that is named, by default the method's own,
    and another group's re-run."""
    rows, table, rerun = [], published()["vtab1k"], published()["vtab1k_independent_rerun"]
    if entry := table.get(name := row or _ROWS.get(method, method)):
        kind = _OTHER if name in _OTHERWISE else _BEST
        how = " (best on test)" if kind == _BEST else ""
        rows.append(_row(entry, name, f"published {name}{how}", entry.get("setting"), kind))
    if entry := rerun["methods"].get(method):
        title = f"re-run {method} (OSU, val)"
        rows.append(_row(entry, method, title, rerun["about"], _RERUN))
    return rows


def _row(
    entry: dict[str, Any], name: str, title: str, setting: str | None, kind: Kind
) -> PublishedRow:
    renamed = {"group_mean": "group mean", "flat_mean_19": "mean of 19"}
    means = {renamed.get(k, k): v for k, v in entry["mean"].items()}
    millions = entry.get("params_m")
    source = [s.rstrip(".") for s in (entry["source"], setting, entry.get("note")) if s]
    return PublishedRow(
        name=name,
        title=title,
        values={**entry["tasks"], **means},
        params=None if millions is None else 1e6 * millions,
        source=". ".join(source) + ".",
        kind=kind,
    )


def few_shot_points(dataset: str, row: str) -> dict[int, float]:
    """Published accuracy of a few-shot row by shots; empty if there is none."""
    shots = published()["fewshot_fgvc"].get(row, {}).get("shots", {})
    name = _SETS.get(dataset, dataset)
    return {int(k): values[name] for k, values in shots.items() if name in values}


def few_shot_row(method: str) -> str:
    """The few-shot row of a method; it need not exist."""
    return _FEW_SHOT_ROWS.get(method, method)


def few_shot_baselines(methods: list[str]) -> dict[str, str]:
    """Rows that are shown besides those of the methods, and their names."""
    shown = {few_shot_row(method) for method in methods}
    return {row: name for row, name in _BASELINES.items() if row not in shown}
