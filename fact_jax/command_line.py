"""Command lines in messages, written in the way in which the user started this process."""

import shlex
import sys

_MODULES = "python -m experiments."  # how the commands of a checkout are started
_SCRIPT = "fact-jax "  # how those of an installed package are; fact_jax/cli/main.py sets argv[0]


def _in_checkout() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


def command(name: str, *arguments: str) -> str:
    """The line that starts one of our commands, such as `fact-jax data --check`."""
    start = _MODULES if _in_checkout() else _SCRIPT
    return f"{start}{name} {shlex.join(arguments)}".strip()


def as_started(text: str) -> str:
    """A text whose lines start commands of a checkout, for those who started `fact-jax`."""
    return text if _in_checkout() else text.replace(_MODULES, _SCRIPT)


def this_command() -> list[str]:
    """The words that started this process, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        action = sys.argv[0].removeprefix(_SCRIPT).split()[1:] if sys.argv[0][:9] == _SCRIPT else []
        return ["python", "-m", spec.name, *action]
    if sys.argv[0].startswith(_SCRIPT):
        return sys.argv[0].split()
    return ["python", sys.argv[0]]
