"""The folder of factor files that a server may load: names to files, and nothing outside."""

import re
from pathlib import Path
from typing import NamedTuple

from fact_jax.errors import UserError
from fact_jax.files.factors import read_factors
from fact_jax.files.guards import absence
from fact_jax.serving.bank import Bank
from fact_jax.serving.incoming import BankTask
from fact_jax.serving.inputs import check_side
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.refusal import Refusal
from fact_jax.serving.server.warm_up import WarmUp
from fact_jax.text import printable_line

SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]*")
_AT_ONCE = 64  # files that are added together


class Preprocessing(NamedTuple):
    """How a picture becomes an image of a task.

    Attributes:
      image_size: side in pixels.
      normalisation: a name of `images.normalise.NORMALISATIONS`.
      jpeg_quality: of a JPEG round trip before the resize; None: there is none.
      resize: a way of `images.pipeline.RESIZES`.
    """

    image_size: int
    normalisation: str
    jpeg_quality: int | None
    resize: str = "square"


def preprocessing(task: BankTask, default_size: int) -> Preprocessing:
    """The preprocessing that a task's factor file states."""
    stated = task.metadata
    return Preprocessing(
        stated.get("image_size") or default_size,
        stated.get("normalisation") or "imagenet",
        stated.get("jpeg_quality"),
        stated.get("resize") or "square",
    )


class TaskFile(NamedTuple):
    """A factor file of the folder, or a task that is loaded.

    Attributes:
      name: of the task, which is the file's without its suffix.
      loaded: whether requests are answered.
      reason: why it could not be loaded; empty if nobody tried.
    """

    name: str
    loaded: bool
    reason: str


class TaskFolder:
    """Loads tasks of one folder into a bank, and unloads them.

    Only regular `.safetensors` files that lie directly in the folder are read. Links may lead to
    other files of the folder. `load`, `unload` and `load_all` are called from one thread.

    Raises:
      UserError: there is no such folder.
    """

    def __init__(self, path: Path, bank: Bank, limits: Limits, warm_up: WarmUp):
        if not path.is_dir():
            raise UserError(f"--factors {path} is no folder; give one that holds factor files.")
        self._root, self._bank, self._limits = path.resolve(), bank, limits
        self._warm_up = warm_up
        self._reasons: dict[str, str] = {}

    def is_name(self, name: str) -> bool:
        """Whether a task can have this name."""
        return len(name) <= self._limits.max_name and _NAME.fullmatch(name) is not None

    def names(self) -> list[str]:
        """Names of the factor files in the folder, sorted."""
        stems = (p.stem for p in self._root.iterdir() if p.suffix == SUFFIX)
        return sorted(stem for stem in stems if self.is_name(stem))

    def index(self) -> list[TaskFile]:
        """All files and loaded tasks, sorted by name."""
        loaded = set(self._bank.names)
        names = sorted({*self.names(), *loaded})
        return [TaskFile(n, n in loaded, self._reasons.get(n, "")) for n in names]

    def load_all(self) -> dict[str, str]:
        """Loads every file of the folder.

        Returns:
          The reason for each file that cannot be served.

        Raises:
          UserError: there are more files than tasks may be loaded.
        """
        for path in self._root.iterdir():
            if path.suffix == SUFFIX and not self.is_name(path.stem):
                self._reasons[path.stem] = (
                    "its name is no task's: expected a letter, digit or _, then letters, digits, "
                    f"_, ., + and -, at most {self._limits.max_name} (--max_name). Rename the file."
                )
        names = self.names()
        if len(names) > (most := self._limits.max_tasks):
            raise UserError(
                f"{self._root} holds {len(names):,} factor files, but at most {most:,} tasks are "
                f"loaded. Give --max_tasks {len(names)}, or another folder."
            )
        for start in range(0, len(names), _AT_ONCE):
            self._load_some(names[start : start + _AT_ONCE])
        self._warm_up(self._bank.names)
        return dict(self._reasons)

    def load(self, name: str) -> None:
        """Loads a task, or replaces it by what its file holds now.

        Raises:
          Refusal: there is no such file, it cannot be served, or too many tasks are loaded.
        """
        path = self._file(name)
        loaded = self._bank.names
        if name not in loaded and len(loaded) >= self._limits.max_tasks:
            raise Refusal(409, f"{len(loaded):,} tasks are loaded, the most; unload one first.")
        try:
            self._add([path])
        except UserError as error:
            self._reasons[name] = self.without_paths(str(error))
            raise Refusal(400, self._reasons[name]) from error
        self._reasons.pop(name, None)
        self._warm_up([name])

    def unload(self, name: str) -> None:
        """Unloads a task; its file stays.

        Raises:
          Refusal: no such task is loaded.
        """
        if name not in self._bank.names:
            raise unknown(name)
        self._bank.remove(name)

    def without_paths(self, text: str) -> str:
        """A message in which the files of the folder have no path before their name."""
        return text.replace(f"{self._root}/", "").replace(str(self._root), "the folder")

    def _load_some(self, names: list[str]) -> None:
        """Loads files together, or one by one if one of them is refused."""
        try:
            self._add([self._file(name) for name in names])
        except (Refusal, UserError) as error:
            if len(names) == 1:
                self._reasons[names[0]] = self.without_paths(str(error))
                return
            for name in names:
                self._load_some([name])

    def _add(self, paths: list[Path]) -> None:
        tasks = {path.stem: read_factors(path) for path in paths}
        config = self._bank.model.config
        for task in tasks.values():
            side = task.metadata.get("image_size") or config.image_size
            check_side(f"Factor file {task.path} asks for images of", side, config.patch_size)
        self._bank.add_all(tasks)

    def _file(self, name: str) -> Path:
        """The file of a name. Raises Refusal unless it is a regular file of the folder."""
        path = self._root / f"{name}{SUFFIX}"
        if not self.is_name(name) or not path.exists():
            raise Refusal(
                404, f"The folder has no factor file {printable_line(name)[:100] + SUFFIX!r}."
            )
        if path.resolve().parent != self._root or path.resolve().suffix != SUFFIX:
            raise Refusal(403, f"{path.name} is a link that leads out of the folder.")
        if not path.is_file():
            raise Refusal(400, f"{path.name} {absence(path)}; expected a factor file.")
        return path


def unknown(name: str) -> Refusal:
    """The refusal of a name that no loaded task has."""
    shown = printable_line(name)[:100]
    return Refusal(404, f"No task {shown!r} is loaded. GET /v1/tasks lists the tasks.")
