"""Who may ask: the token, and the hosts and pages that a browser may come from."""

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fact_jax.serving.server.refusal import Refusal
from fact_jax.text import printable_line

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# The page holds nothing itself. A browser cannot send a token for it; its script does.
_OPEN = ("/v2/health/live", "/v2/health/ready", "/")


def error_response(refusal: Refusal) -> JSONResponse:
    """The answer that carries a refusal."""
    headers = dict(refusal.headers)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": printable_line(refusal.text)}, refusal.status, headers)


class Access:
    """Refuses requests without the token, and those that other web pages send.

    A page of any site can make its visitor's browser send requests to loopback. It then names
    itself in the header Origin, or, after DNS rebinding, its own name in Host.

    Args:
      app: is asked if nothing is wrong.
      token: of all requests but for health and the page; None: there is none.
      hosts: names by which the server may be called; None: any.
    """

    def __init__(self, app: ASGIApp, token: bytes | None, hosts: Collection[str] | None):
        self._app, self._token = app, token
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        answer = self._app if refusal is None else error_response(refusal)
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(host) not in self._hosts:
            return Refusal(403, "The header Host names another host; start with --allow_host NAME.")
        if origin is not None and origin.partition("://")[2] != host:
            return Refusal(403, "The request comes from a page of another site.")
        if self._token is None or scope["path"] in _OPEN:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return None
        return Refusal(401, "The request has no valid token; send Authorization: Bearer TOKEN.")


def _name(host: str) -> str:
    """The host of HOST, HOST:PORT or [HOST]:PORT, in small letters."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
