"""The result of a finished cell, and its file DIR/results/<cell>.json.

Sweeps make it; reports, later sweeps and launchers read it through `Result.from_json`, and may rely
on what that checks: fields have their types, numbers are finite, classes exist, lists that belong
together are equally long.
"""

import dataclasses
import functools
import math
import os
import re
from typing import Annotated, Any, NamedTuple, Self, TypedDict

from etils import epath

from fact_jax.data import get_task
from fact_jax.errors import UserError
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between, check_type

VERSION = 2  # of new files; those of version 1 have no `version` and no `kind`
# Reads a JSON file of a work directory: an object, with NaN as earlier versions wrote it.
read_stored = functools.partial(
    read_json, max_bytes=32 << 20, allow_nan=True, allow_surrogates=True
)
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


class Kind(NamedTuple):
    """The way in which an accuracy was made. Only numbers of one kind compare.

    Attributes:
      protocol: "val", "paper", or "not recorded".
      epoch: the evaluation on test that counts: "last", or "best on test".
      selection: what the settings were chosen by: "validation", "given", or "not recorded".
      grid: the number of settings that were tried; None where it is not recorded.
      architectures: the number of architectures that a search measured on validation data.
    """

    protocol: str
    epoch: str
    selection: str
    grid: int | None
    architectures: int


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished cell; accuracies in %.

    Fields have the names of the file's keys. Records of earlier versions lack some of them, which
    then have the defaults. `workdir`, the work directory as the reader was given it, is not stored.
    """

    cell: Name
    method: Name
    task: Name
    seed: int
    accuracy: Percent
    protocol: str | None = None
    variant: str | None = None
    group: str | None = None
    accuracy_last_epoch: Percent | None = None
    scale: float | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    consistency_weight: float | None = None
    consistency_noise: float | None = None
    selection: dict[str, float | None] = dataclasses.field(default_factory=dict)
    grid_size: Annotated[int, Between(1, 10**6)] | None = None
    search: Search | None = None
    num_factors: Count | None = None
    num_head: Count | None = None
    factor_file_bytes: Count | None = None
    num_train: Count | None = None
    num_test: Count | None = None
    losses: Annotated[list[float | None], Between(0, 10**6)] | None = None
    test_accuracies: Annotated[list[Percent | None], Between(0, 10**6)] | None = None
    class_names: Annotated[list[ClassName], Between(0, _MAX_CLASSES)] | None = None
    per_class_accuracy: Annotated[list[Percent | None], Between(0, _MAX_CLASSES)] | None = None
    measures: dict[str, Percent | None] | None = None
    label_precision: Annotated[list[Percent | None], Between(0, _MAX_CLASSES)] | None = None
    confusion: Annotated[list[tuple[Class, Class, Count]], Between(0, 10**6)] | None = None
    examples: Examples | None = None
    epochs_run: Count | None = None
    stack: Stack = dataclasses.field(default_factory=Stack)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    environment: dict[str, str | None] = dataclasses.field(default_factory=dict)
    version: Annotated[int, Between(1, VERSION)] = 1
    synthetic: bool = False
    workdir: str = ""

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], workdir: str = "") -> Self:
        """Reads DIR/results/<cell>.json, of this version or an earlier one.

        Raises:
          UserError: the file is no record of the cell; its text names the file and the field.
          OSError: the file cannot be read.
        """
        content = read_stored(path)
        try:
            _check(content, epath.Path(path).stem)
        except ValueError as error:
            raise UserError(f"{path} is no record of a sweep: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in content.items() if name in names}
        if fields.get("confusion"):
            fields["confusion"] = [tuple(entry) for entry in fields["confusion"]]
        return cls(**{**fields, "workdir": workdir})

    def to_json(self) -> dict[str, Any]:
        """The content of the file, with the `kind` of the accuracy."""
        left_out = ("workdir",) if self.synthetic else ("workdir", "synthetic")
        content = {k: v for k, v in vars(self).items() if k not in left_out}
        return {**content, "kind": self.kind._asdict()}

    def __getitem__(self, name: str) -> Any:
        """The field of this name, as from the dicts that earlier versions gave."""
        return getattr(self, name)

    @property
    def kind(self) -> Kind:
        """The way in which `accuracy` was made."""
        epoch = "best on test" if self.protocol == "paper" else "last"
        chosen = "validation" if (self.grid_size or 1) > 1 or self.search else "given"
        return Kind(
            self.protocol or "not recorded",
            epoch,
            "not recorded" if self.grid_size is None else chosen,
            self.grid_size,
            self.search["history"][-1]["tried"] if self.search else 0,
        )

    @property
    def broke_down(self) -> bool:
        """Whether the training loss ended no lower than guessing has it, log(number of classes).

        False where that says nothing: for random data, several labels, weighted classes, one epoch,
        and consistency, whose loss is more than the cross-entropy.
        """
        classes, losses = len(self.per_class_accuracy or ()), self.losses or ()
        others = ("mock_data", "class_weights", "consistency")
        if not classes or len(losses) < 2 or any(self.settings.get(name) for name in others):
            return False
        return losses[-1] is not None and losses[-1] >= math.log(classes)

    def check_complete(self) -> None:
        """Raises ValueError if a field is missing that sweeps of this version write and show."""
        missing = [name for name in _COMPLETE if getattr(self, name) is None]
        missing += [f"data.{name}" for name in _DATA if name not in self.data]
        missing += [] if "cell" in self.seconds else ["seconds.cell"]
        if missing:
            raise ValueError(f"{missing[0]} is missing")


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
    *("scale", "learning_rate", "weight_decay", "grid_size", "num_factors", "factor_file_bytes"),
)
_DATA = ("builder", "used_version")


def _check(content: dict[str, Any], cell: str) -> None:
    """Raises ValueError, naming the field, for what is no record of the cell.

    NaN in a curve becomes None, as this version writes it.
    """
    for curve in ("losses", "test_accuracies"):
        if isinstance(values := content.get(curve), list):
            content[curve] = [None if _is_nan(value) else value for value in values]
    check_type(content, Result)
    check_type(content.get("settings", {}), Settings, "settings")
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


def candidate_settings(label: str) -> dict[str, float]:
    """The numbers of a candidate's label: "scale=0.1, learning_rate=0.001"."""
    parts = (part.split("=", 1) for part in label.split(", ") if "=" in part)
    return {name: float(value) for name, value in parts}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_classes(content: dict[str, Any]) -> None:
    names, accuracies = content.get("class_names"), content.get("per_class_accuracy")
    for of_classes in ("per_class_accuracy", "label_precision"):
        values = content.get(of_classes)
        if names and values and len(names) != len(values):
            raise ValueError(f"{of_classes} has {len(values)} entries for {len(names)} class_names")
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
