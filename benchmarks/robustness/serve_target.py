"""`fact-jax serve` under watch: which files Python opens once the server has started.

    python -m benchmarks.robustness.serve_target REPORT ALLOWED[:ALLOWED...] --factors=DIR ...

Writes to REPORT, as JSON, the paths that were opened or listed outside of the allowed folders.
The audit hook sees what Python opens, but no file that a library in C opens by itself.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fact_jax.cli.main import start
from fact_jax.serving.server import connection

_EVENTS = ("open", "os.listdir", "os.scandir")


class Watch:
    """Records opened paths while it is armed."""

    def __init__(self, allowed: list[str]):
        self._allowed = [f"{os.path.realpath(folder)}{os.sep}" for folder in allowed]
        self.armed, self.outside = False, set[str]()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.armed or event not in _EVENTS or isinstance(arguments[0], int):
            return
        path = os.fsdecode(os.path.realpath(arguments[0] or "."))
        if not any(f"{path}{os.sep}".startswith(folder) for folder in self._allowed):
            self.outside.add(f"{event} {path}")

    def around(self, serve: Callable[..., None]) -> Callable[..., None]:
        """A function that serves, and is watched meanwhile."""

        def watched(*arguments: Any) -> None:
            self.armed = True
            serve(*arguments)
            self.armed = False

        return watched


def main() -> None:
    report, allowed, *rest = sys.argv[1:]
    watch = Watch(allowed.split(os.pathsep))
    sys.addaudithook(watch.hook)
    connection.serve = watch.around(connection.serve)
    sys.argv = ["fact-jax serve", *rest]
    try:
        start("serve")
    finally:
        Path(report).write_text(json.dumps(sorted(watch.outside)))


if __name__ == "__main__":
    main()
