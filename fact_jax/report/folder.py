"""The folder of a report: its files replace all files of an older report, or none."""

import contextlib
import json
import re
import uuid
import warnings
from collections.abc import Mapping
from typing import TypedDict

from etils import epath

from fact_jax.files.guards import is_regular
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import check_type

_MANIFEST = "report_files.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.(html|md|csv|png|svg|jpg)", re.ASCII)
GENERATOR = '<meta name="generator" content="fact-jax report">'


class _Manifest(TypedDict):
    files: list[str]


def file_name(stem: str, suffix: str) -> str:
    """A file name without characters that mean something in a path or a Markdown link."""
    return f"{re.sub(r'[^A-Za-z0-9_.+-]', '-', stem).lstrip('-.') or 'figure'}.{suffix}"


def replace_report(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes the files of a report into a folder, `index.html` last, and removes further files of
    the report before it.

    Everything is written beside the old files first: a full disk leaves the old report whole. Only
    names in the manifest of an earlier call are removed. A file that has a name of the new report
    but was not written by a report is renamed, with a warning. Raises OSError if the folder cannot
    be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = _listed(folder)
    ours = set(files) if _is_report(folder) else old
    foreign = [name for name in files if name not in ours or (folder / name).is_dir()]
    new = folder / f".report-{uuid.uuid4().hex[:8]}"
    try:
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        (new / _MANIFEST).write_text(_manifest({*old, *files}))
        (new / f"{_MANIFEST}.new").write_text(_manifest({*files}))
        (new / _MANIFEST).replace(folder / _MANIFEST)  # from now on it names old and new files
        for name in foreign:
            _keep(folder / name)
        for name in sorted(files, key="index.html".__eq__):
            (new / name).replace(folder / name)
        for name in old - set(files):
            (folder / name).unlink(missing_ok=True)
        (new / f"{_MANIFEST}.new").replace(folder / _MANIFEST)
    finally:
        with contextlib.suppress(OSError):
            new.rmtree(missing_ok=True)


def _keep(path: epath.Path) -> None:
    """Renames a file that is not ours, if there is one."""
    if path.exists():
        other = path.parent / f"{path.name}.before-{uuid.uuid4().hex[:8]}"
        path.rename(other)
        warnings.warn(f"{path} was not written by a report: it is now {other.name}.", stacklevel=4)


def _manifest(names: set[str]) -> str:
    return json.dumps({"files": sorted(names)}, indent=1) + "\n"


def _listed(folder: epath.Path) -> set[str]:
    """The names in the manifest; none if there is no sound manifest."""
    try:
        content = read_json(folder / _MANIFEST, max_bytes=1 << 20)
        check_type(content, _Manifest)
    except (OSError, ValueError):
        return set()
    return {name for name in content["files"] if _NAME.fullmatch(name)}


def _is_report(folder: epath.Path) -> bool:
    """Whether the page in the folder is a report's; earlier versions left no manifest."""
    page = folder / "index.html"
    if not is_regular(page):
        return False
    with page.open("rb") as file:
        return GENERATOR.encode() in file.read(2000)
