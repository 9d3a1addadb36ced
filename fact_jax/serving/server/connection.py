"""Connections of the server: times that uvicorn leaves open, and a graceful end."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fact_jax.serving.server.access import error_response
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.refusal import Refusal

_TICK = 0.5  # seconds between two looks at a connection
_KEEP_ALIVE = 5  # seconds that a connection without a request stays
_DRAIN_TICKS = 3  # of 0.1 s, in which requests under way still arrive


class Config(uvicorn.Config):
    """uvicorn's settings, and our limits."""

    limits: Limits


class Connection(H11Protocol):
    """A connection that ends if its client is too slow.

    uvicorn waits for ever for the head of a request, for a client that does not read, and for the
    rest of a body that was refused. How long a body takes is bounded by `Intake`.
    """

    _look_again: asyncio.TimerHandle | None = None
    _state: tuple[str, Any] = ("", None)
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to look after a new connection."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > 2 * most:
            transport.abort()
            return
        if len(self.connections) > most:
            self.app = _full
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the looks."""
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, in the form of our other errors."""
        self._refuse(400, "The request is no sound HTTP/1.1.")

    @property
    def _limits(self) -> Limits:
        return cast(Config, self.config).limits

    def _look(self) -> None:
        """Closes the connection if it has been in one state for too long."""
        now, state = self.loop.time(), self._name_of_state()
        if (state, self.cycle) != self._state:
            self._state, self._since = (state, self.cycle), now
        seconds = {"waiting": self._limits.head_timeout, "answering": self._limits.answer_timeout}
        if now - self._since > seconds.get(state, float("inf")):
            self._give_up()
        self._look_again = self.loop.call_later(_TICK, self._look)

    def _name_of_state(self) -> str:
        """'waiting' for a request, 'working' on it, or 'answering'."""
        if self.cycle is None or self.cycle.response_complete:
            return "waiting"
        return "answering" if self.cycle.response_started else "working"

    def _give_up(self) -> None:
        if self.transport.is_closing() or self.conn.our_state is not h11.IDLE:
            self.transport.abort()
        elif self.conn.trailing_data[0]:
            self._refuse(
                408, f"The request's head has not arrived in {self._limits.head_timeout:g} s."
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, text: str) -> None:
        """Answers without the app, and closes."""
        body = json.dumps({"error": text}).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        for event in (
            h11.Response(status_code=status, headers=headers, reason=b""),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(Refusal(503, "Too many connections; try again later.", 1))
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


class Server(uvicorn.Server):
    """Ends when `stopped` says so: it drains, answers what was accepted, and returns."""

    def __init__(self, config: Config, stopped: Callable[[], bool], drain: Callable[[], None]):
        super().__init__(config)
        self._stopped, self._drain, self._drained = stopped, drain, 0

    async def on_tick(self, counter: int) -> bool:
        """Looks for the end ten times a second."""
        if self._stopped():
            if self._drained == 0:
                self._drain()
            self._drained += 1
        return await super().on_tick(counter) or self._drained > _DRAIN_TICKS

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the command."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, which does not listen yet.

    Raises:
      OSError: the address is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def serve(
    app: ASGIApp,
    bound: socket.socket,
    limits: Limits,
    stopped: Callable[[], bool],
    drain: Callable[[], None],
    grace: float,
) -> None:
    """Serves until `stopped` says so.

    Args:
      app: answers the requests.
      bound: where clients come from.
      limits: of connections and times.
      stopped: whether the server should end.
      drain: is called once at the beginning of the end.
      grace: seconds that accepted requests have then.
    """
    config = Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(grace),
        backlog=limits.max_connections,
    )
    config.limits = limits
    Server(config, stopped, drain).run(sockets=[bound])
