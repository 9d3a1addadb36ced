"""``fact-jax COMMAND``: the commands from any folder, after `pip install`."""

import difflib
import importlib
import sys

import fact_jax
from fact_jax.cli import process
from fact_jax.text import say

COMMANDS = {
    "fit": "a classifier of your own pictures, by one call",
    "vtab": "train and test methods on tasks: VTAB-1K, the offline suite, your own pictures",
    "fewshot": "the same with 1 to 16 images a class",
    "predict": "classes of pictures, by a trained task",
    "export": "factors and weights in the formats of other code",
    "push": "a trained task on the Hugging Face hub",
    "round": "a trained task in fewer numbers, or in another method's form",
    "bank train": "a dictionary of factors that several tasks learn together",
    "bank share": "the same, made of tasks that are trained already",
    "bank pack": "the factor files of many tasks in one file",
    "bank unpack": "the factor files of a pack",
    "serve": "many tasks on one ViT over HTTP, with a page to try them",
    "report": "a page, tables and figures of finished sweeps",
    "data": "which data sets are ready here; prepares them",
}
HELP = ("--help", "-help", "-h", "help", "--helpshort")

USAGE = "\n".join(
    [
        "usage: fact-jax COMMAND [--flag=VALUE ...]",
        "",
        *(f"  {name:12}{text}" for name, text in COMMANDS.items()),
        "",
        "`fact-jax COMMAND --help` lists a command's flags. To begin, with your own pictures:",
        "  fact-jax fit --images FOLDER --out fit",
        "or offline, in minutes:",
        "  fact-jax vtab --config quickstart --workdir runs/quickstart",
        "  fact-jax report --workdir runs/quickstart",
    ]
)


def main() -> None:
    """Runs the command that the first argument names, or the first two; imports no other."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP:
        print(USAGE)
    elif name == "--version":
        print(f"fact-jax {fact_jax.__version__}")
    elif name in COMMANDS:
        sys.argv = [f"fact-jax {name}", *arguments]
        start(name)
    elif _actions(name):
        sys.argv = [sys.argv[0], *arguments]
        start_action(name)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        _refuse(
            f"{name!r} is not a command.{guess} The commands are {', '.join(COMMANDS)}; the "
            "command comes first, its flags after it."
        )


def start(name: str) -> None:
    """Runs a command with the arguments of this process. Defines its flags and no other's."""
    command = importlib.import_module(f"fact_jax.cli.{name.replace(' ', '_')}")
    process.run(command.main, command.__doc__ or "", command.define_flags)


def start_action(name: str) -> None:
    """Runs one of the actions of a command, which the first argument of this process names."""
    action, *arguments = sys.argv[1:] or [""]
    if action in HELP:
        lines = [f"  {action:12}{COMMANDS[action]}" for action in _actions(name)]
        print("\n".join([f"usage: fact-jax {name} ACTION [--flag=VALUE ...]", "", *lines]))
    elif f"{name} {action}" in COMMANDS:
        sys.argv = [f"fact-jax {name} {action}", *arguments]
        start(f"{name} {action}")
    else:
        actions = ", ".join(_actions(name))
        _refuse(f"{action!r} is no action of {name}: give one of {actions}, then its flags.")


def _actions(name: str) -> list[str]:
    """The commands of two words that begin with this one."""
    return [command for command in COMMANDS if command.startswith(f"{name} ")]


def _refuse(text: str) -> None:
    say(f"error: {text}", error=True)
    sys.exit(2)
