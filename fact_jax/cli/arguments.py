"""Flags of the commands: parsed with readable errors, and listed by `--help`."""

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from fact_jax.backbone.config import VARIANTS
from fact_jax.cli import configs
from fact_jax.command_line import as_started, command, this_command
from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask
from fact_jax.files.load import TORCH_SUFFIXES
from fact_jax.sweep.resolution import check_setting
from fact_jax.text import printable_line, say

HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")
_WIDTH = 100
_EXPECTED = {  # by the words of Python and absl
    "literal for int()": "a whole number",
    "string to float": "a number",
    "Non-boolean": "True or False",
}


def define_factor_flags() -> None:
    """Defines the flags of commands that read a factor file for a ViT."""
    flags.DEFINE_string("variant", None, "The ViT; by default the factor file's.")
    flags.DEFINE_string(
        "weights",
        None,
        "Its weights, a file, folder or hf:owner/name; by default the published ones.",
    )
    flags.DEFINE_enum("method", None, ["tt", "tk"], "Method of a .pt file.")
    flags.DEFINE_float("scale", None, "Scale of a .pt file, which does not say it.")
    flags.DEFINE_bool("any_weights", False, "Accept weights it was not trained on.")


def variant_of(task: TrainedTask | None, variant: str | None) -> str:
    """The ViT's variant: `variant`, if --variant gives one, or the factor file's."""
    if variant:
        return variant
    stated: str | None = task.metadata.get("variant") if task else None
    if not (task and stated):
        which = f"{task.path} does not say its ViT: give it" if task else "Give the ViT"
        raise UserError(f"{which} with --variant, such as --variant=vit_b16.")
    if stated not in VARIANTS:
        raise UserError(
            f"{task.path} says that its ViT is {stated!r:.100}, which is not known here. Give it "
            f"with --variant: {', '.join(VARIANTS)}."
        )
    return stated


def say_base(task: TrainedTask | None, weights: str | None) -> None:
    """Says on stderr that an adapter gets weights of which it is not known whether they are its."""
    metadata = task.metadata if task else {}
    base = printable_line(str(metadata.get("base_model") or ""))
    if task and base and not weights and not metadata.get("weights_sha256"):
        path = printable_line(str(task.path))
        say(
            f"{path} was trained on {base}, and gets the published weights of its variant. If they "
            f"are others, give --weights hf:{base}.",
            error=True,
        )


def refuse_torch(path: Path) -> None:
    """Raises UserError for a `.pt` of the PyTorch code, which says neither scale nor ViT."""
    if path.suffix in TORCH_SUFFIXES:
        raise of_other_code(path, "--scale", "SCALE")


def of_other_code(path: Path, *more: str) -> UserError:
    """The error where only a factor file of ours will do, with the command that makes one."""
    flags_of_export = ("--variant", "VARIANT", *more, "--out", "NAME.safetensors")
    line = command("export", "--factors", str(path), *flags_of_export)
    return UserError(f"{path} is a file of other code. Make a factor file of it first: {line}")


def parse(argv: list[str], text: str, define: Callable[[], None]) -> list[str]:
    """Parses a command's flags and returns the other words.

    Args:
      argv: the words of the command line, with the program's name.
      text: what `--help` prints above the flags: the docstring of the command's module.
      define: defines the flags, which may depend on the command line, as `--config` does.

    Raises:
      SystemExit: with status 0 after `--help`, with status 2 for flags in error.
    """
    wants_help = any(word in HELP for word in argv[1:])
    if wants_help:
        sys.argv = sys.argv[:1]  # where the config looks for its settings
    try:
        define()
        if not wants_help:
            return flags.FLAGS(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        say(f"error: {_explained(error)}", error=True)
        sys.exit(2)
    say(help_text(text))
    sys.exit(0)


def help_text(text: str) -> str:
    """The command's text, its own flags (absl and TensorFlow have some, too), and the configs."""
    parts = [as_started(text.strip()), "Flags:"]
    for module, group in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("fact_jax."):
            parts += [_described(flag) for flag in group]
    if "config" in flags.FLAGS:
        parts.append("\n".join(textwrap.fill(line, _WIDTH) for line in configs.help_lines()))
    return "\n\n".join(parts)


def _described(flag: flags.Flag[Any]) -> str:
    """A flag as `--help` shows it: its name, its use and its default."""
    values = "|".join(getattr(flag.parser, "enum_values", ()))
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={values or flag.name.upper()}"
    words = " ".join((flag.help or "").split()).removeprefix(
        f"<{values}>: "
    )  # absl writes the values, too
    if isinstance(flag.default, str | int | float) and flag.default:
        words += f" Default: {flag.default}."
    indent = " " * 6
    return f"  {name}\n" + textwrap.fill(
        words, _WIDTH, initial_indent=indent, subsequent_indent=indent
    )


def _of_another_type(error: flags.Error) -> str | None:
    """A sentence on a value that is not of its flag's type; None for another fault."""
    start = str(error).removesuffix(f": {error.__context__}")
    found = re.fullmatch(r"flag --([^=]+?)((?:\[.*\])*)=(.*)", start, re.DOTALL)
    if found is None:
        return None
    name, _, value = found.groups()
    if name.startswith("config."):
        try:
            check_setting(name.removeprefix("config."), value)
        except UserError as refused:  # a command line has no None
            return str(refused).replace("expected None or ", "expected ")
    for words, expected in _EXPECTED.items():
        if words in str(error.__context__):
            return f"--{name} is {value!r}; expected {expected}."
    return None


def _explained(error: Exception) -> str:
    """A sentence on the fault of the flags, made of absl's and ml_collections' errors."""
    if isinstance(error, flags.Error):
        if isinstance(error.__context__, UserError):  # absl puts the flag before its text
            return str(error.__context__)
        if refusal := _of_another_type(error):
            return refusal
        sentence = " ".join(str(error).split()).removesuffix(".")
        return f"{sentence}. `{' '.join(this_command())} --help` lists the flags."
    places = [word for word in sys.argv[1:] if re.match(r"--?config\.[^=]*\[", word)]
    if places and re.search(
        "index out of range|indices must be|subscript|item assignment", str(error)
    ):
        return f"{places[0]}: no list has this place; set the whole list, as --config.seeds=0,1."
    cause: object = error  # ml_collections puts the KeyError of a name into an AttributeError
    while isinstance(cause, Exception) and cause.args and not isinstance(cause, KeyError):
        cause = cause.args[0]
    if isinstance(cause, KeyError):
        name, _, hint = str(cause.args[0]).partition("\n")
        text = f"unknown setting {name}. {hint}".strip()
        return f"{text} The config's file lists them."
    text = " ".join(str(error).split())
    if text.startswith("malformed node"):
        return "the name of a setting has characters that no name has; see the config's file."
    return text
