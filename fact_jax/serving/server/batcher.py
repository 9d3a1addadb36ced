"""One thread that calls the network, and a bounded queue of images before it."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fact_jax.errors import UserError
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.refusal import Refusal

Compute = Callable[[np.ndarray, list[str]], list[np.ndarray]]
"""Logits of each image [n, s, s, 3] for its task, as `Bank.logits` computes them."""


class BatchRun(NamedTuple):
    """A batch that the network has answered."""

    images: int
    seconds: float


@dataclasses.dataclass(eq=False)
class _Job:
    """Images of one request, which wait for their logits."""

    images: np.ndarray
    task: str
    answer: asyncio.Future[list[np.ndarray]]
    arrived: float


class Batcher:
    """Collects images of many requests into batches, in one event loop.

    A batch begins with the oldest request. It takes other requests with images of the same size
    until it is full, or until the oldest has waited for `limits.max_delay_ms`. While a batch runs,
    later requests collect for the next one.

    Args:
      compute: called in a thread of its own, by one batch after another.
      batch_size: most images of a batch; a request with more is a batch alone.
      limits: bounds on the queue and on times.
      observe: is told of each batch.
    """

    def __init__(
        self,
        compute: Compute,
        batch_size: int,
        limits: Limits,
        observe: Callable[[BatchRun], None] = lambda run: None,
    ):
        self._compute, self._batch_size, self._limits = compute, batch_size, limits
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._device = ThreadPoolExecutor(1, "device")
        self._last_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return sum(len(job.images) for job in self._jobs if not job.answer.done())

    async def logits(
        self, images: Float[np.ndarray, "n s s 3"], task: str
    ) -> list[Float[np.ndarray, " c"]]:
        """Waits for the logits of images of one task.

        Raises:
          Refusal: the queue is full, or the network has not answered in time.
          UserError: the bank refuses the images or has no such task any more.
        """
        most = self._limits.max_queue
        if len(images) > most:
            raise Refusal(413, f"{len(images):,} images in a request; expected at most {most:,}.")
        if self._closing or self.waiting + len(images) > most:
            reason = "The server is ending" if self._closing else "Too many images are waiting"
            raise Refusal(503, f"{reason}; ask again later.", self._seconds_to_wait())
        loop = asyncio.get_running_loop()
        job = _Job(images, task, loop.create_future(), loop.time())
        self._jobs.append(job)
        self._changed.set()
        try:
            async with asyncio.timeout(self._limits.answer_timeout):
                return await job.answer
        except TimeoutError as error:
            seconds = f"{self._limits.answer_timeout:g}"
            raise Refusal(504, f"The network has not answered in {seconds} s.") from error

    async def run(self) -> None:
        """Answers requests until `close` is called and the queue is empty."""
        while await self._any():
            jobs = await self._take()
            if jobs:
                await self._answer(jobs)
        self._device.shutdown()

    def close(self) -> None:
        """Accepts nothing more; what waits is answered."""
        self._closing = True
        self._changed.set()

    async def _any(self) -> bool:
        """Waits for a job; False at the end."""
        while not self._jobs and not self._closing:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._jobs)

    async def _take(self) -> list[_Job]:
        """The jobs of the next batch, taken out of the queue."""
        until = self._jobs[0].arrived + self._limits.max_delay_ms / 1000
        while not self._closing and self.waiting < self._batch_size:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        jobs: list[_Job] = []
        rest: deque[_Job] = deque()
        count = 0
        for job in self._jobs:
            if job.answer.done():  # its client has gone, or its time is over
                continue
            fits = not jobs or (
                job.images.shape[1:] == jobs[0].images.shape[1:]
                and count + len(job.images) <= self._batch_size
            )
            if fits:
                jobs.append(job)
                count += len(job.images)
            else:
                rest.append(job)
        self._jobs = rest
        return jobs

    async def _answer(self, jobs: list[_Job]) -> None:
        """Computes a batch and gives each job its logits, or the reason why it has none."""
        loop = asyncio.get_running_loop()
        computing = loop.run_in_executor(self._device, self._computed, jobs)
        await asyncio.wait([computing])
        error = computing.exception()
        if isinstance(error, UserError) and len(jobs) > 1:  # such as a task that was just unloaded
            for job in jobs:
                await self._answer([job])
            return
        for i, job in enumerate(jobs):
            if job.answer.done():
                continue
            if error is None:
                job.answer.set_result(computing.result()[i])
            else:
                job.answer.set_exception(error)

    def _computed(self, jobs: list[_Job]) -> list[list[np.ndarray]]:
        """The logits of each job; runs in the thread of the device."""
        began = time.monotonic()
        images = np.concatenate([job.images for job in jobs])
        names = [job.task for job in jobs for _ in job.images]
        rows = iter(self._compute(images, names))
        answers = [[next(rows) for _ in job.images] for job in jobs]
        self._last_seconds = time.monotonic() - began
        self._observe(BatchRun(len(images), self._last_seconds))
        return answers

    def _seconds_to_wait(self) -> int:
        """Whole seconds in which the queue will have been answered, at the last batch's rate."""
        batches = self.waiting / self._batch_size + 1
        return min(max(1, math.ceil(batches * self._last_seconds)), 60)
