"""The frame of every command: quiet logs, readable errors, exit status."""

import os
import shlex
import signal
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from fact_jax.cli import arguments
from fact_jax.cli.stopping import STOPPING, Answer, Terminated, end_process
from fact_jax.cli.terminal import prepare_terminal
from fact_jax.command_line import this_command
from fact_jax.errors import UserError
from fact_jax.files.download import cache_dir
from fact_jax.text import say


def join_processes(how: str) -> None:
    """Makes this process one of several that share all their devices (`jax.distributed`).

    'auto', where the surroundings say who the others are, or "HOST:PORT,COUNT,INDEX".
    """
    # jax's preemption service would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    if how == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = how.split(",")
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or ":" not in address:
        raise UserError(
            f"--distributed is {how!r}; expected 'auto', or HOST:PORT,COUNT,INDEX such as "
            "10.0.0.1:8476,2,0."
        )
    jax.distributed.initialize(address, int(numbers[0]), int(numbers[1]))


def prepare_process() -> None:
    """Sets up quiet logs, a terminal for any text, and the commands' cache of programs."""
    prepare_terminal()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # silences its notice, too
    logging.set_verbosity(logging.FATAL)  # what Orbax's threads log is raised, too
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))


def rerun_command(cell: str) -> str:
    """The command that runs one cell of this sweep again."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        flag, is_value, _ = word.partition("=")
        if flag.lstrip("-") not in ("cells", "distributed") or not flag.startswith("-"):
            words.append(word)
        elif not is_value:
            next(given, None)  # the flag's value is the next word
    return shlex.join([*this_command(), *words, f"--cells={cell}"])


def run(
    main: Callable[[], None], text: str = "", define: Callable[[], None] = lambda: None
) -> None:
    """Runs `main` under absl. A UserError is printed as one paragraph (status 2); Ctrl-C and
    SIGTERM say how to go on (status 130 and 143). `text` and `define`: see `arguments.parse`."""

    def parse(argv: list[str]) -> list[str]:
        prepare_terminal()
        return arguments.parse(argv, text, define)

    def guarded(argv: list[str]) -> None:
        prepare_process()
        try:
            if len(argv) > 1:
                how = (
                    "settings are --config.NAME=VALUE" if "config" in flags.FLAGS else "see --help"
                )
                raise UserError(f"Unknown argument {argv[1]!r}; {how}.")
            main()
        except UserError as error:
            say(f"error: {error}", error=True)
            if error.at_once:
                end_process(2)
            sys.exit(2)

    STOPPING.answer(signal.SIGINT, Answer(KeyboardInterrupt))
    STOPPING.answer(signal.SIGTERM, Answer(Terminated))
    try:
        app.run(guarded, flags_parser=parse)
    except KeyboardInterrupt:
        STOPPING.leave(signal.SIGINT, jax.distributed.shutdown)
    except Terminated:
        STOPPING.leave(signal.SIGTERM, jax.distributed.shutdown)
    finally:
        STOPPING.over()
