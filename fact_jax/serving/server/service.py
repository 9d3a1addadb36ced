"""Requests of clients, without HTTP's paths: pictures and tensors in, classes and logits out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request

from fact_jax.files.json_reader import read_json
from fact_jax.serving.bank import Bank
from fact_jax.serving.incoming import BankTask
from fact_jax.serving.server.batcher import Batcher
from fact_jax.serving.server.folder import Preprocessing, TaskFolder, preprocessing, unknown
from fact_jax.serving.server.intake import Intake
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.metrics import Metrics
from fact_jax.serving.server.pictures import prepare, read_upload
from fact_jax.serving.server.protocol import (
    BINARY_HEADER,
    inference_answer,
    parse_inference,
    top_classes,
)
from fact_jax.serving.server.refusal import Refusal
from fact_jax.serving.store import UnknownTask

T = TypeVar("T")
_TRIES = 3  # of a request whose task is replaced meanwhile
_TOPK = 5


class Service:
    """A bank with its folder, its queue and its limits.

    Attributes:
      metrics: what was served.
      draining: whether the server is about to end.
    """

    def __init__(self, bank: Bank, folder: TaskFolder, limits: Limits):
        self.bank, self.folder, self.limits = bank, folder, limits
        self.metrics, self.draining = Metrics(), False
        self._intake = Intake(limits)
        self._batcher = Batcher(bank.logits, bank.batch_size, limits, self.metrics.batch)
        self._decoders = ThreadPoolExecutor(limits.decode_threads, "decoder")
        self._loader = ThreadPoolExecutor(1, "loader")
        self.metrics.show("tasks", "Tasks that are loaded.", lambda: len(bank.names))
        self.metrics.show("queue_images", "Images that wait.", lambda: self._batcher.waiting)
        self.metrics.show("body_bytes", "Bytes of bodies held.", lambda: self._intake.held)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers requests inside of the block; at its end, what was accepted is answered."""
        batches = asyncio.create_task(self._batcher.run())
        try:
            yield
        finally:
            self._batcher.close()
            await batches
            self._decoders.shutdown()
            self._loader.shutdown()

    def drain(self) -> None:
        """Begins the end: the server is not ready any more, and late bodies are given up."""
        self.draining = True
        self._intake.end()

    def task(self, name: str) -> BankTask:
        """The loaded task of a name. Raises Refusal."""
        try:
            return self.bank.task(name)
        except UnknownTask as error:
            raise unknown(name) from error

    def steps(self, task: BankTask) -> Preprocessing:
        """The preprocessing of a task."""
        return preprocessing(task, self.bank.model.config.image_size)

    async def classify(self, name: str, request: Request) -> dict[str, Any]:
        """The most probable classes of an uploaded picture."""
        self.task(name)
        topk = _whole("topk", request.query_params.get("topk"))
        content_type = request.headers.get("content-type", "")
        async with self._intake.body(request) as body:
            upload = await _in(self._decoders, partial(read_upload, body, content_type))
            topk = topk or _whole("topk", upload.fields.get("topk")) or _TOPK
            task, logits = await self._of_one_task(name, partial(self._seen, name, upload.picture))
        return {
            "task": name,
            "predictions": top_classes(logits[0], task.classes, topk, task.multi_label),
        }

    async def infer(self, name: str, request: Request) -> tuple[bytes, dict[str, str]]:
        """The logits of a tensor: the body of the answer, and its headers."""
        self.task(name)
        length = _whole(BINARY_HEADER, request.headers.get(BINARY_HEADER))
        async with self._intake.body(request) as body:
            _, answer = await self._of_one_task(name, partial(self._inferred, name, body, length))
        return answer

    async def load(self, name: str, request: Request) -> None:
        """Loads or replaces a task by the file of its name."""
        async with self._intake.body(request) as body:
            if body:
                stated = read_json(body, name="The request", max_bytes=len(body))
                if stated.get("parameters"):
                    raise Refusal(
                        400, "Loading takes no parameters; the task is the folder's file."
                    )
        await _in(self._loader, partial(self.folder.load, name))

    async def unload(self, name: str) -> None:
        """Unloads a task."""
        await _in(self._loader, partial(self.folder.unload, name))

    async def _seen(self, name: str, picture: bytes, task: BankTask) -> np.ndarray:
        """The logits [1, c] of a picture."""
        steps, pixels = self.steps(task), self.limits.pixels
        images = await _in(self._decoders, partial(prepare, picture, steps, pixels))
        return await self._logits(images, name)

    async def _inferred(
        self, name: str, body: bytes, length: int | None, task: BankTask
    ) -> tuple[bytes, dict[str, str]]:
        """The answer to an inference request."""
        side = self.steps(task).image_size
        inference = await _in(self._decoders, partial(parse_inference, body, length, side))
        logits = await self._logits(inference.images, name)
        return await _in(self._decoders, partial(inference_answer, name, logits, inference))

    async def _logits(self, images: np.ndarray, name: str) -> np.ndarray:
        rows = await self._batcher.logits(images, name)
        if len({len(row) for row in rows}) > 1:
            raise _Replaced
        logits = np.stack(rows)
        if not np.isfinite(logits).all():
            raise Refusal(422, "The logits are not finite: the images' or task's are too large.")
        return logits

    async def _of_one_task(
        self, name: str, answer: Callable[[BankTask], Awaitable[T]]
    ) -> tuple[BankTask, T]:
        """An answer, and the task that gave it: the same before and after."""
        for _ in range(_TRIES):
            task = self.task(name)
            with contextlib.suppress(_Replaced):
                given = await answer(task)
                if self.task(name) is task:
                    return task, given
        raise Refusal(503, "The task is being replaced; ask again.", 1)


class _Replaced(Exception):
    """The parts of a request were answered by tasks with different classes."""


async def _in(pool: Executor, function: Callable[[], T]) -> T:
    """Runs a function in a thread of a pool, and awaits what it returns."""
    return await asyncio.get_running_loop().run_in_executor(pool, function)


def _whole(name: str, text: str | None) -> int | None:
    """A whole number of 1 to 1,000,000 from a client; None if there is none."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and 1 <= int(text) <= 1_000_000):
        raise Refusal(400, f"{name} is {ascii(text)[:50]}; expected a whole number of 1 or more.")
    return int(text)
