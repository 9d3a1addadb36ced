"""Configs by name or path: ``--config tt_rank16``, ``--config compare:vtab``, ``--config FILE``.

The names are those of the package's own config files: configs/ in a checkout, fact_jax/configs of
an installed package. They say `from configs import base`, and so may any other config file: the
name `configs` means the package's own, whatever lies in the folder where a command runs.
"""

import difflib
import inspect
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import fact_jax
from fact_jax.errors import UserError

NO_SWEEPS = ("__init__", "base")  # the other files build on them


def folder() -> Path:
    """The package's own config files."""
    package = Path(fact_jax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
    """Configs that a sweep can run."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem not in NO_SWEEPS)


def find(name: str) -> Path:
    """The file of a config.

    Args:
      name: of one of the package's configs, with or without configs/ before it and .py after it;
        or the path of a file. A name without both is the package's; a path is the user's file, if
        there is one.

    Raises:
      UserError: no such name or file. It lists the names.
    """
    path = Path(name).expanduser()
    shipped = folder() / f"{path.name.removesuffix('.py')}.py"
    named = path.parent in (Path("."), Path("configs")) and shipped.is_file()
    if named and path.name == name and path.suffix != ".py":
        return shipped
    if path.is_file():
        return path
    if named:
        return shipped
    near = difflib.get_close_matches(path.stem, names(), n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    if (file := Path(f"{path}.py")).is_file():
        guess = f" Did you mean the file {file}?"
    raise UserError(
        f"--config {name!r} is neither a file nor the name of a config.{guess} The names are "
        f"{', '.join(names())}."
    )


def load(config: str) -> ConfigDict:
    """The settings of ``NAME`` or ``NAME:ARGUMENT``, where the name may be a path (`find`).

    Raises:
      UserError: there is no such config, it does not take this argument, or its code fails.
    """
    name, colon, argument = config.partition(":")
    path = find(name)
    try:
        settings = _call(_module(path), [argument] if colon else [])
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program, which may raise anything
        words = error.msg if isinstance(error, SyntaxError) else error
        place = f"{path}{_line(path, error)}: {type(error).__name__}: "
        if colon and isinstance(error, ValueError):  # the config does not know the argument
            place = ""
        text = " ".join(f"{place}{words}".split())
        raise UserError(f"--config {config!r}: {text:.500}") from error
    if not isinstance(settings, ConfigDict):
        raise UserError(
            f"get_config() of {path} gave a {type(settings).__name__}; expected a ConfigDict, such "
            "as that of configs/base.py."
        )
    return settings


def _call(module: ModuleType, arguments: list[str]) -> Any:
    """Calls get_config()."""
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"{module.__file__} has no function get_config(), which a config needs.")
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        what = "takes no argument after a colon" if arguments else "needs one: FILE:ARGUMENT"
        raise UserError(f"The config {module.__file__} {what}.") from error
    return get_config(*arguments)


def _line(path: Path, error: BaseException) -> str:
    """The line of the file in which an error was raised."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    number = lines[-1] if lines else None
    return f", line {number}" if number else ""


def _module(path: Path) -> ModuleType:
    """Runs a config file, for which `configs` is the package's own folder and then the file's."""
    shipped = folder()
    package = _imported("configs", shipped / "__init__.py", [str(shipped)])
    if path.parent.name == "configs":  # a user's configs that share files of their own
        package.__path__ = list(dict.fromkeys([str(shipped), str(path.resolve().parent)]))
    return _imported("config_file", path)


def _imported(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """The module of a file, under this name in `sys.modules`."""
    module = sys.modules.get(name)
    if module is not None and folders and getattr(module, "__file__", None) == str(path):
        return module
    loader = SourceFileLoader(name, str(path))  # whatever its name ends in
    spec = spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    loader.exec_module(module)
    return module


class _Parser(flags.ArgumentParser[ConfigDict]):
    """Makes a ConfigDict of the flag's text, with its settings locked: no new ones."""

    def parse(self, argument: str) -> ConfigDict:
        settings = load(argument)
        settings.lock()
        return settings

    def flag_type(self) -> str:
        return "config"


def define_flag(default: str) -> None:
    """Defines ``--config``, and ``--config.NAME=VALUE`` for each of its settings."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The settings: a config by name, such as compare, also with an argument, such as "
        "compare:vtab; or the path of a config file.",
    )
    flag = flags.FLAGS["config"]
    flag.parser = _Parser()
    flags.FLAGS.set_default("config", default)


def help_lines() -> list[str]:
    """Lines of `--help` on configs."""
    table = Path(fact_jax.__file__).parent / "sweep" / "settings.py"
    return [
        f"Configs by name: {', '.join(names())}.",
        "Settings of a config are changed by --config.NAME=VALUE, such as --config.epochs=20 or "
        f"--config.fact_tt.rank=8; {table} lists them.",
    ]
