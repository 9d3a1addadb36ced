"""Bodies of requests, read within limits of bytes and time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.refusal import Refusal

_AS_IT_IS = "identity"
_AT_THE_END = 1.0  # seconds that bodies may still take when the server ends


class Intake:
    """Reads bodies, whose bytes are counted while they arrive, whatever their heads say."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._held = 0  # bytes of all bodies that have not been given back
        self._reading: set[asyncio.Timeout] = set()
        self._ending = False

    @property
    def held(self) -> int:
        """Bytes of all bodies at this moment."""
        return self._held

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held until the block ends.

        Raises:
          Refusal: it is compressed or too large, comes too slowly, or others take all the memory.
        """
        encoding = request.headers.get("content-encoding", _AS_IT_IS)
        if encoding.strip().lower() != _AS_IT_IS:  # a small body might become one of any size
            text = f"The body is compressed by {ascii(encoding)[:50]}; send it as it is."
            raise Refusal(415, text)
        stated = request.headers.get("content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated) > self._limits.body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self._held -= len(body)

    def end(self) -> None:
        """Gives bodies that are still arriving a second."""
        self._ending = True
        latest = asyncio.get_running_loop().time() + _AT_THE_END
        for timeout in self._reading:
            timeout.reschedule(min(latest, timeout.when() or latest))

    async def _read(self, request: Request, body: bytearray) -> None:
        seconds = _AT_THE_END if self._ending else self._limits.body_timeout
        timeout = asyncio.timeout(seconds)
        self._reading.add(timeout)
        try:
            async with timeout:
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > self._limits.body_bytes:
                        raise self._too_large()
                    if self._held > self._limits.bodies_bytes:
                        raise Refusal(503, "Too many bodies are arriving; ask again later.", 1)
        except TimeoutError as error:
            raise Refusal(408, f"The body has not arrived in {seconds:g} s.") from error
        finally:
            self._reading.discard(timeout)

    def _too_large(self) -> Refusal:
        most = self._limits.max_body_mb
        return Refusal(413, f"The body has more than {most} MiB, the most of this server.")
