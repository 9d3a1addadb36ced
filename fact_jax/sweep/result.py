"""The record of a finished cell, DIR/results/<cell>.json: its type, and the one check of it.

Records of earlier versions have fewer fields. What `check_result` lets through, reports and sweeps
may rely on: present fields have their types, numbers are finite, classes exist, lists that belong
together are equally long.
"""

import math
import re
from typing import Annotated, Any, TypedDict

from fact_jax.data import get_task
from fact_jax.errors import UserError
from fact_jax.files.schema import Between, check_type

MAX_RESULT_BYTES = 32 << 20
_MAX_CLASSES = 100_000

Percent = Annotated[float, Between(0, 100)]
Count = Annotated[int, Between(0, 2**53)]
Width = Annotated[int, Between(0, 10**6)]
Name = Annotated[str, Between(1, 255)]
ClassName = Annotated[str, Between(0, 1000)]
Class = Annotated[int, Between(0, _MAX_CLASSES - 1)]
Classes = Annotated[list[Class], Between(0, 1000)]


class Generation(TypedDict):
    """One generation of a search for an architecture."""

    best: float
    tried: Count


class Search(TypedDict, total=False):
    """An architecture that was found: `best` holds widths by family and block."""

    families: Annotated[list[Name], Between(1, 20)]
    best: Annotated[list[Annotated[list[Width], Between(1, 1000)]], Between(1, 20)]
    fitness: float
    history: Annotated[list[Generation], Between(1, 10**5)]


class Examples(TypedDict):
    """A row of pictures of the test split."""

    file: Name
    size: Annotated[int, Between(1, 1024)]
    true: Classes
    predicted: Classes


class Stack(TypedDict, total=False):
    """The stack that the cell trained in, of `runs` together."""

    runs: Count


class Settings(TypedDict, total=False):
    """The settings that reports look at; a method's own may be anything."""

    image_size: int | None
    weights_sha256: str | None


class _Needed(TypedDict):
    cell: Name
    task: Name
    method: Name
    seed: int
    accuracy: Percent


class StoredResult(_Needed, total=False):
    """The fields of a record; accuracies in %."""

    protocol: str
    variant: str
    group: str
    accuracy_last_epoch: Percent
    scale: float
    learning_rate: float
    weight_decay: float
    selection: dict[str, float | None]
    grid_size: Annotated[int, Between(1, 10**6)]
    search: Search | None
    num_factors: Count
    num_head: Count
    factor_file_bytes: Count
    num_train: Count
    num_test: Count
    losses: Annotated[list[float | None], Between(0, 10**6)]
    test_accuracies: Annotated[list[Percent | None], Between(0, 10**6)]
    class_names: Annotated[list[ClassName], Between(0, _MAX_CLASSES)] | None
    per_class_accuracy: Annotated[list[Percent | None], Between(0, _MAX_CLASSES)] | None
    confusion: Annotated[list[tuple[Class, Class, Count]], Between(0, 10**6)] | None
    examples: Examples | None
    epochs_run: Count
    stack: Stack
    seconds: dict[str, float]
    settings: Settings
    data: dict[str, Any]
    environment: dict[str, str | None]
    weights: str | None


class StoredFailure(TypedDict, total=False):
    """Why a cell is not finished, DIR/failures/<cell>.json."""

    cell: Name
    method: str
    task: str
    seed: int
    error: str
    message: str
    traceback: str
    command: str
    when: str


# Fields that a sweep of this version writes and its tables show.
_COMPLETE = (
    *("scale", "learning_rate", "weight_decay", "selection", "grid_size", "search", "num_factors"),
    *("factor_file_bytes", "seconds", "data"),
)
_DATA = ("builder", "used_version")


def check_result(content: dict[str, Any], cell: str) -> None:
    """Raises ValueError, naming the field, for what is no record of the cell.

    NaN in a curve becomes None, as this version writes it.
    """
    for curve in ("losses", "test_accuracies"):
        if isinstance(values := content.get(curve), list):
            content[curve] = [None if _is_nan(value) else value for value in values]
    check_type(content, StoredResult)
    if content["cell"] != cell:
        raise ValueError(f"cell is {content['cell']!r}, expected the file's name, {cell!r}")
    try:
        get_task(content["task"])
    except UserError as error:
        raise ValueError(f"task is {content['task']!r}, which is not known here") from error
    _check_classes(content)
    _check_curves(content)
    if content.get("search"):
        _check_search(content["search"])


def check_complete(result: dict[str, Any]) -> None:
    """Raises ValueError if a field is missing that sweeps of this version write and show."""
    missing = [name for name in _COMPLETE if name not in result]
    missing += [f"data.{name}" for name in _DATA if name not in result.get("data", {})]
    missing += [] if "cell" in result.get("seconds", {}) else ["seconds.cell"]
    if missing:
        raise ValueError(f"{missing[0]} is missing")


def candidate_settings(label: str) -> dict[str, float]:
    """The numbers of a candidate's label: "scale=0.1, learning_rate=0.001"."""
    parts = (part.split("=", 1) for part in label.split(", ") if "=" in part)
    return {name: float(value) for name, value in parts}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_classes(content: dict[str, Any]) -> None:
    names, accuracies = content.get("class_names"), content.get("per_class_accuracy")
    if names and accuracies and len(names) != len(accuracies):
        raise ValueError(
            f"per_class_accuracy has {len(accuracies)} entries for {len(names)} class_names"
        )
    count = len(names or accuracies or ()) or _MAX_CLASSES
    used = [c for true, predicted, _ in content.get("confusion") or () for c in (true, predicted)]
    examples = content.get("examples")
    if examples:
        if len(examples["true"]) != len(examples["predicted"]):
            raise ValueError("examples.true and examples.predicted differ in length")
        used += [*examples["true"], *examples["predicted"]]
    if used and max(used) >= count:
        raise ValueError(f"class {max(used)} of the confusion or examples is not below {count}")


def _check_curves(content: dict[str, Any]) -> None:
    losses, accuracies = content.get("losses"), content.get("test_accuracies")
    if losses and accuracies and len(losses) != len(accuracies):
        raise ValueError(
            f"losses has {len(losses)} entries and test_accuracies {len(accuracies)}; expected one "
            "an epoch in both"
        )
    for label in content.get("selection") or ():
        try:
            check_type(candidate_settings(label), dict[str, float])
        except ValueError as error:
            raise ValueError(f"selection has {label!r:.40}, expected name=number") from error


def _check_search(search: dict[str, Any]) -> None:
    if absent := [name for name in ("best", "fitness", "history") if name not in search]:
        raise ValueError(f"search.{absent[0]} is missing")
    best, families = search["best"], search.get("families")
    if len(set(map(len, best))) > 1:
        raise ValueError("search.best has rows of several lengths")
    if families is None and len(best) != 3:
        raise ValueError(f"search.best has {len(best)} rows, expected NOAH's three")
    if families is not None:
        if len(families) != len(best):
            raise ValueError(f"search.best has {len(best)} rows for {len(families)} families")
        named = all(re.fullmatch(r"[A-Za-z]\w*", name) for name in families)
        if not named or len({*families, "curve"}) <= len(families):
            raise ValueError(f"search.families is {families!r:.60}, expected different names")
