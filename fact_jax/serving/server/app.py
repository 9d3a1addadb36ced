"""The paths of the server: Open Inference Protocol V2, a plain API for pictures, a page."""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from jinja2 import Template
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fact_jax.errors import UserError
from fact_jax.serving.server.access import Access, error_response
from fact_jax.serving.server.folder import unknown
from fact_jax.serving.server.metrics import CONTENT_TYPE
from fact_jax.serving.server.protocol import VERSION, model_metadata, server_metadata
from fact_jax.serving.server.refusal import Refusal
from fact_jax.serving.server.service import Service
from fact_jax.serving.store import UnknownTask

_PAGE = Path(__file__).parent / "templates" / "page.html"


class App:
    """The answers to each path."""

    def __init__(self, service: Service):
        self._service = service
        self._page = Template(_PAGE.read_text(), autoescape=True)

    @property
    def routes(self) -> list[Route]:
        """All paths with their methods."""
        get, post = ["GET"], ["POST"]
        repository, models = "/v2/repository", "/v2/models/{task}"
        return [
            Route("/", self.page, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/v1/tasks", self.tasks, methods=get),
            Route("/v1/tasks/{task}/classify", self.classify, methods=post),
            Route("/v2", self.server, methods=get),
            Route("/v2/health/live", self.live, methods=get),
            Route("/v2/health/ready", self.ready, methods=get),
            *(
                route
                for model in (models, f"{models}/versions/{{version}}")
                for route in (
                    Route(model, self.model, methods=get),
                    Route(f"{model}/ready", self.model_ready, methods=get),
                    Route(f"{model}/infer", self.infer, methods=post),
                )
            ),
            Route(f"{repository}/index", self.index, methods=post),
            Route(f"{repository}/models/{{task}}/load", self.load, methods=post),
            Route(f"{repository}/models/{{task}}/unload", self.unload, methods=post),
        ]

    async def page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(self._page.render(nonce=nonce), headers=headers)

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def tasks(self, request: Request) -> Response:
        tasks = []
        for name in sorted(self._service.bank.names):
            with contextlib.suppress(UnknownTask):  # unloaded in this moment
                task = self._service.bank.task(name)
                size = self._service.steps(task).image_size
                tasks.append({"name": name, "classes": len(task.classes), "image_size": size})
        return JSONResponse({"tasks": tasks})

    async def classify(self, request: Request) -> Response:
        return JSONResponse(await self._service.classify(request.path_params["task"], request))

    async def server(self, request: Request) -> Response:
        return JSONResponse(server_metadata())

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        if self._service.draining:
            raise Refusal(503, "The server is ending.", 1)
        return JSONResponse({"ready": True})

    async def model(self, request: Request) -> Response:
        name = _of_version(request)
        task = self._service.task(name)
        return JSONResponse(model_metadata(name, task, self._service.steps(task)))

    async def model_ready(self, request: Request) -> Response:
        name = _of_version(request)
        self._service.task(name)
        return JSONResponse({"name": name, "ready": True})

    async def infer(self, request: Request) -> Response:
        content, headers = await self._service.infer(_of_version(request), request)
        return Response(content, headers=headers)

    async def index(self, request: Request) -> Response:
        states = [
            {
                "name": file.name,
                "version": VERSION,
                "state": "READY" if file.loaded else "UNAVAILABLE",
                "reason": file.reason,
            }
            for file in self._service.folder.index()
        ]
        return JSONResponse(states)

    async def load(self, request: Request) -> Response:
        await self._service.load(request.path_params["task"], request)
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._service.unload(request.path_params["task"])
        return JSONResponse({})


def _of_version(request: Request) -> str:
    """The task that a path names, whose version may stand behind it. Raises Refusal."""
    name: str = request.path_params["task"]
    version = request.path_params.get("version", VERSION)
    if version != VERSION:
        raise Refusal(
            404, f"A task has only version {VERSION}, not {ascii(version)[:50]}; leave it out."
        )
    return name


class Watch:
    """Counts each request, and has connections closed once the server is ending."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._service)
        began = time.monotonic()
        try:
            await self._app(scope, receive, answer.send)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self._service.metrics.request(route, answer.status, time.monotonic() - began)


class _Answer:
    """An answer on its way to the client."""

    def __init__(self, send: Send, service: Service):
        self._send, self._service = send, service
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._service.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send(message)


def build_app(
    service: Service, token: bytes | None = None, hosts: Collection[str] | None = None
) -> Starlette:
    """The server's ASGI application.

    Args:
      service: what it asks.
      token: that clients must send; None: there is none.
      hosts: names by which the server may be called; None: any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    return Starlette(
        routes=App(service).routes,
        middleware=[
            Middleware(Watch, service=service),
            Middleware(Access, token=token, hosts=hosts),
        ],
        exception_handlers={
            Refusal: refused,
            UserError: refused,
            HTTPException: refused,
            ClientDisconnect: refused,
            Exception: failed,
        },
        lifespan=lifespan,
    )


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that is wrong."""
    if isinstance(error, Refusal):
        return error_response(error)
    if isinstance(error, UnknownTask):  # unloaded while the request waited
        return error_response(unknown(request.path_params.get("task", "")))
    if isinstance(error, HTTPException):
        text = (
            f"{error.detail}: nothing answers {request.method} at this path. docs/server.md lists "
            "all paths."
        )
        response = error_response(Refusal(error.status_code, text))
        response.headers.update(error.headers or {})
        return response
    if isinstance(error, ClientDisconnect):  # nobody reads this
        return error_response(Refusal(400, "The connection ended before the body."))
    return error_response(Refusal(400, str(error)))


async def failed(request: Request, error: Exception) -> Response:
    """The answer where the server itself is at fault; the traceback is in its log."""
    return error_response(Refusal(500, "The server failed; its log has the reason."))
