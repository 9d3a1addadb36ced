"""How a command ends when it is told to: by Ctrl-C, SIGTERM, or what a launcher sends.

The main thread gets an exception, leaves its `with` blocks (claims, temporary files, the terminal's
bars) and ends the process. Python raises that exception only between two instructions, and one step
of XLA may last minutes. So a second thread waits beside it, and ends the process by itself when the
time is over or when a second signal comes. This loses no more than `kill -9` does, which every file
here survives (docs/faults.md).

Both end by `os._exit`. jax compiles in a C++ thread that goes on when Ctrl-C interrupts whoever
waits for it. At Python's own end, jax destroys its client: the main thread waits until the program
is compiled (20 s and more), the devices are gone by then, and the C++ thread asks them for the
program's shardings. That was a segmentation fault, status 139, after the goodbye
(xla::ifrt::SingleDeviceSharding::Create in jax 0.10).
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from fact_jax.text import say
from fact_jax.training.mesh import agree_on_any

# Seconds from SIGTERM to the end: the epoch under way may finish. Machines that are taken away give
# 30 (Google's spot and preemptible ones, Slurm's KillWait).
GRACE = 20.0
LEAVE = 5.0  # seconds from the exception to the end
MARGIN = 1.0  # seconds that the end itself may take on a busy machine
# Seconds in which a signal that comes again is the same one: `timeout`, `uv run` and other wrappers
# pass on what the terminal has sent to all of its processes already.
ECHO = 0.5
TEXTS = {int(signal.SIGINT): "Interrupted."}
GO_ON = "Run the same command again to go on."


class Terminated(BaseException):
    """A command was told to end, by SIGTERM or a launcher's signal."""


def _unraisable(what: Any) -> None:
    """Hides the exceptions of signals that came in a finaliser; `check_signals` raises them."""
    if not issubclass(what.exc_type, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(what)


class Answer(NamedTuple):
    """Handles a signal: raises `exception`, after `grace` seconds if nobody asked before."""

    exception: type[BaseException]
    grace: float = 0.0
    last: Callable[[], Any] = lambda: None  # called before the process ends without its main thread


def end_process(status: int) -> NoReturn:
    """Ends the process without Python's own end (see above)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # such as a pipe that nobody reads
            stream.flush()
    os._exit(status)


def exit_status(ended: SystemExit) -> int:
    """The status that Python gives a process that ends by this exception."""
    if isinstance(ended.code, int):
        return ended.code & 255
    return 0 if ended.code is None else 1


class Stopping:
    """The signals that end this process, and whether one has come."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal that came
        self._answers: dict[int, Answer] = {}
        self._said = self._over = False

    def answer(self, number: int, answer: Answer) -> None:
        """Handles a signal from now on, also one that a library has taken meanwhile."""
        self._over = False
        if not self._answers:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            sys.unraisablehook = _unraisable
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        self._answers[number] = answer
        signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises the exception of a signal that has come: now is a good moment to end.

        All of several processes end if one must.
        """
        answer = None if self.number is None else self._answers[self.number]
        if answer and not answer.grace:  # it was raised where Python only reports it: a finaliser
            raise answer.exception
        if agree_on_any(answer is not None):
            raise Terminated

    def gently(
        self,
        number: int = signal.SIGTERM,
        grace: float = GRACE,
        last: Callable[[], Any] = lambda: None,
    ) -> None:
        """Lets SIGTERM, or another signal, end the command at the next `check`, or in `grace`
        seconds. ``last()`` is called before the process ends without its main thread."""
        self.answer(number, Answer(Terminated, grace, last))

    def over(self) -> None:
        """Nothing is left to stop: no time is counted, and a signal ends the process at once."""
        self._over = True
        for number in self._answers:
            signal.signal(number, lambda number, frame: os._exit(128 + number))
        signal.setitimer(signal.ITIMER_REAL, 0)

    def leave(self, number: int, disconnect: Callable[[], Any] = lambda: None) -> NoReturn:
        """Ends the process from its main thread, with the status that a shell gives the signal."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(OSError, ValueError):
            self._said = True
            say(f"\n{TEXTS.get(number, 'Terminated.')} {GO_ON}", error=True)
        disconnect()
        end_process(128 + number)

    def _handle(self, number: int, frame: Any) -> None:
        if self._over or self.number is not None:
            return  # what a second one does, the thread does
        self.number = number
        answer = self._answers[number]
        if not answer.grace:
            raise answer.exception

        def times_up(number: int, frame: Any) -> None:
            raise answer.exception

        signal.signal(signal.SIGALRM, times_up)
        signal.setitimer(signal.ITIMER_REAL, max(answer.grace - LEAVE, answer.grace / 2))

    def _watch(self, reader: int) -> None:
        number = self._next(reader, None)
        assert number is not None
        began, answer = time.monotonic(), self._answers[number]
        until = began + max((answer.grace or LEAVE) - MARGIN, 0.1)
        while (left := until - time.monotonic()) > 0:
            again = self._next(reader, left)
            if again is not None and time.monotonic() - began > ECHO:
                break
        if self._over:
            return
        status = 128 + number
        try:
            answer.last()
        except SystemExit as ended:
            status = exit_status(ended)
        finally:
            self._say(number)
            os._exit(status)

    def _next(self, reader: int, seconds: float | None) -> int | None:
        """The next of our signals; None if none comes in this time."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                return None
            number = os.read(reader, 1)[0]
            if number in self._answers:
                return number

    def _say(self, number: int) -> None:
        """Says goodbye without the locks that the main thread may hold, and shows the cursor, which
        the bars have hidden."""
        text = "" if self._said else f"\n{TEXTS.get(number, 'Terminated.')} {GO_ON}\n"
        for descriptor, words in ((1, ""), (2, text)):
            words = f"\x1b[?25h{words}" if os.isatty(descriptor) else words
            with contextlib.suppress(OSError):
                if select.select([], [descriptor], [], 0.5)[1]:  # one that is held up takes nothing
                    os.write(descriptor, words.encode())


STOPPING = Stopping()
check_signals = STOPPING.check
end_gently = STOPPING.gently
