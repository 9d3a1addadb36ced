"""Finding a task's TFDS builder on disk or in TFDS's code, and preparing its records."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from etils import epath
from filelock import FileLock

from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.extras import require

Builder: TypeAlias = Any  # a `tfds.core.DatasetBuilder`, which has no annotations, or a stand-in


@dataclass(frozen=True)
class Match:
    """A TFDS builder that matches a task's request, prepared or not.

    Attributes:
      builder: the `tfds.core.DatasetBuilder`.
      request: the version pattern that it satisfies.
      ready: its records are on disk.
    """

    builder: Builder
    request: str
    ready: bool

    @property
    def version(self) -> str:
        return str(self.builder.version)


def find_builder(task: Task, data_dir: str | None) -> Match:
    """The builder of the first version in question that is on disk, else that TFDS can prepare.

    A pattern such as '3.*.*' is first matched with the versions on disk, then with the versions of
    TFDS's code, the default version first (task_adaptation leaves it to TFDS in the same way).
    The task's own request goes before its substitutes.

    Raises:
      UserError: TFDS is not installed, or knows no such data set or none of the versions, or the
        files on disk are broken.
    """
    require("This data set", "tfds", "tensorflow_datasets", "tensorflow")
    import tensorflow_datasets as tfds

    if task.builder_module:
        importlib.import_module(task.builder_module)
    preparable, refusals = [], []
    for request in (task.versions, *task.substitutes):
        try:
            builder = tfds.builder(task.builder, version=request, data_dir=data_dir, try_gcs=False)
        except (AssertionError, tfds.core.DatasetNotFoundError) as error:
            refusals.append(str(error).strip().splitlines()[0])
            continue
        except Exception as error:  # truncated or foreign metadata raise all sorts of errors
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(
                f"Task {task.name}: what {data_dir or 'the TFDS data directory'} holds of "
                f"{task.builder} cannot be opened ({reason}). Delete its directory there and "
                f"prepare the data again."
            ) from error
        if (builder.data_path / "dataset_info.json").exists():
            return Match(builder, request, ready=True)
        # TFDS reads old versions, but prepares only these two.
        if builder.version in (builder.canonical_version, max(builder.versions)):
            preparable.append(Match(builder, request, ready=False))
        else:
            refusals.append(f"{builder.info.full_name} can be read but no longer prepared")
    if preparable:
        return preparable[0]
    raise UserError(
        f"Task {task.name}: TFDS {tfds.__version__} offers no version of {task.builder!r} that "
        f"matches {' or '.join((task.versions, *task.substitutes))} ({'; '.join(refusals)}). "
        f"Install the tensorflow-datasets of requirements.txt, or put a prepared copy in "
        f"{data_dir or 'the TFDS data directory'}."
    )


def missing_manual_files(task: Task, builder: Builder) -> list[str]:
    """Paths that a person must provide and that are not there."""
    folder = manual_dir(builder)
    return [str(folder / name) for name in task.manual if not (folder / name).exists()]


def manual_dir(builder: Builder) -> epath.Path:
    """The folder in which TFDS looks for files that a person provides."""
    return epath.Path(builder.data_dir_root) / "downloads" / "manual"


def prepare(task: Task, data_dir: str | None) -> Match:
    """Downloads and prepares the task's records, unless they are there; one process at a time.

    Raises:
      UserError: files that a person must provide are missing, or TFDS failed.
    """
    match = find_builder(task, data_dir)
    with _lock(match.builder.data_dir_root):
        match = find_builder(task, data_dir)  # another process may have prepared it meanwhile
        if match.ready:
            return match
        if missing_manual_files(task, match.builder):
            raise UserError(
                f"Task {task.name} ({task.builder}) needs files that TFDS cannot download."
                f"{by_hand(task, match.builder)} Then run the same command again."
            )
        import tensorflow_datasets as tfds

        try:
            # No copy from TFDS's bucket: the records come from the published sources.
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            match.builder.download_and_prepare(download_config=config)
        except (Exception, SystemExit) as error:
            raise UserError(_failure_message(task, match.builder, error)) from error
    return find_builder(task, data_dir)


@contextlib.contextmanager
def _lock(root: str | os.PathLike[str]) -> Iterator[None]:
    folder = epath.Path(root).expanduser()
    if "://" in str(root):  # a bucket cannot be locked: at least one process per machine
        folder = epath.Path(tempfile.gettempdir())
    # Others of the group may share the folder. The lock goes with the process, however that ends.
    lock = FileLock(os.fspath(folder / "fact_jax_prepare.lock"), mode=0o666)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"Data directory {root} cannot be written ({error}): give another with --data_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def by_hand(task: Task, builder: Builder) -> str:
    """Instructions for a manual or dead source, without which TFDS cannot go on."""
    another_way = task.few_shot.elsewhere if task.few_shot else task.elsewhere
    elsewhere = f" {another_way}" if another_way else ""
    if not task.fetch:
        return elsewhere
    missing = missing_manual_files(task, builder)
    words = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    return (
        (f" The source is dead: {task.dead}." if task.dead else "")
        + (f" Missing: {', '.join(missing)}." if missing else "")
        + f" First get {task.fetch}, and put that in {manual_dir(builder)}."
        + (f" (TFDS's own words: {words})" if words else "")
        + elsewhere
    )


def _failure_message(task: Task, builder: Builder, error: BaseException) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
    package = {"cv2": "opencv-python-headless"}.get(str(getattr(error, "name", "")))
    return (
        f"Preparing {task.builder} for task {task.name} failed with {reason}."
        + (f" Install {package}." if package else "")
        + by_hand(task, builder)
        + " Run the same command again to go on. A source file had elsewhere is taken from "
        f"{manual_dir(builder)} under its published name if its checksum is right (docs/data.md)."
    )
