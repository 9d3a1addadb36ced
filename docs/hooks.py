"""Hooks of MkDocs: pages of the root, links that leave docs/, a check, defaults in signatures.

The check fails the build if a public name of the library is not in the API reference, as optax's
docs/ext/coverage_check.py does.
"""

import os
import re
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocstrings import Inventory

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Pages whose text lies at the root, where GitHub looks for it.
AT_ROOT = {"changelog.md": ROOT / "CHANGELOG.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
# Links such as [text](path#anchor), but not those with a scheme or with an anchor alone.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")
ROOMS = (
    "algebra",
    "backbone",
    "data",
    "files",
    "images",
    "report",
    "serving",
    "sweep",
    "training",
    "tuning",
)


class Defaults(griffe.Extension):
    """Shows ``rank: int = setting(16, SIZE)`` as ``rank: int = 16`` in signatures."""

    def on_attribute_instance(self, *, attr, **_):
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
            default = value.arguments[0]
            attr.value = None if str(default).endswith("MISSING") else default


def on_files(files, config):
    """Adds the pages that lie at the root."""
    for name, path in AT_ROOT.items():
        files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links that leave docs/ into links to the repository, and refuses dead ones."""
    name = page.file.src_uri
    source = AT_ROOT.get(name, DOCS / name)

    def target(match):
        path = (source.parent / match[1]).resolve()
        if not path.exists():
            raise PluginError(f"{name}: the link {match[1]} leads nowhere")
        inside = {str(p): n for n, p in AT_ROOT.items()}.get(str(path))
        if inside or path.is_relative_to(DOCS):
            return os.path.relpath(DOCS / (inside or path), (DOCS / name).parent)
        kind = "tree" if path.is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{path.relative_to(ROOT)}"

    return LINK.sub(target, markdown)


def public_names(package):
    """Full names of what the rooms offer."""
    modules = [package.members[room] for room in ROOMS]
    while modules:
        module = modules.pop()
        for member in module.members.values():
            if member.is_alias or member.name.startswith("_"):
                continue
            if member.is_module:
                modules.append(member)
            elif member.is_class or member.is_function:
                yield member.path


def on_post_build(config):
    """Compares the library's public names with those that the reference describes."""
    package = griffe.load("fact_jax", search_paths=[str(ROOT)], allow_inspection=False)
    with open(Path(config.site_dir) / "objects.inv", "rb") as file:
        described = set(Inventory.parse_sphinx(file))
    listed = (DOCS / "api" / "index.md").read_text()
    missing = [name for name in package.exports if f"[`{name}`]" not in listed]
    if missing := missing + sorted(set(public_names(package)) - described):
        raise PluginError(
            "Not in the API reference, for want of a docstring, of a page in docs/api, or of a "
            "line in docs/api/index.md: " + ", ".join(map(str, missing))
        )
