"""Clients of the server's trial: good ones, whose answers are checked, and bad ones."""

import asyncio
import dataclasses
import io
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.robustness.serve_tasks import Truth, put_version

TOLERANCE = 1e-4  # of logits and probabilities
GONE = (ConnectionError, asyncio.IncompleteReadError)
PATIENCE = 60.0  # seconds for an answer, or for the end of a bad connection


class Answer(NamedTuple):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclasses.dataclass
class Trial:
    """The server under trial, and what its clients saw.

    Attributes:
      ended_at: when the server was told to end; 0: not yet.
      statuses: how often each kind of request got each status; "closed" is a connection that the
        server ended without an answer.
      seconds: of each good request that was answered.
      wrong: what must not be.
      refused_at_end: requests that came after the server was told to end.
      answered_at_end: requests that were sent before, and answered after it.
    """

    port: int
    folder: Path
    truth: Truth
    churned: list[str]
    ended_at: float = 0.0
    statuses: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    refused_at_end: int = 0
    answered_at_end: int = 0

    def count(self, kind: str, status: int | str, *allowed: int | str) -> None:
        """Counts an answer, which must be one of the allowed."""
        self.statuses.setdefault(kind, Counter())[str(status)] += 1
        if allowed and status not in allowed and not self.ended_at:
            self.wrong.append(f"{kind}: {status}")

    async def ask(self, method: str, path: str, body: bytes = b"", head: str = "") -> Answer | None:
        """The answer to a request on a connection of its own; None after the server's end."""
        sent_at = float("inf")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                size = f"Content-Length: {len(body)}\r\n"
                start = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{size}{head}\r\n"
                writer.write(start.encode() + body)
                await writer.drain()
                sent_at = time.monotonic()
                answer = await asyncio.wait_for(read_answer(reader), PATIENCE)
            finally:
                writer.close()
        except GONE as error:
            if not self.ended_at or sent_at < self.ended_at:
                self.wrong.append(f"{method} {path}: no answer ({type(error).__name__})")
            self.refused_at_end += bool(self.ended_at)
            return None
        if self.ended_at:
            self.answered_at_end += sent_at < self.ended_at
        return answer


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Reads one HTTP answer."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.partition(": ") for line in lines[1:] if line)
    headers = {name.lower(): value for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(lines[0].split()[1]), headers, body)


async def good(trial: Trial, rng: random.Random) -> None:
    """Asks for a picture's classes or a tensor's logits, and checks every number."""
    name = rng.choice(list(trial.truth.logits))
    number = rng.randrange(len(trial.truth.pictures))
    kind = rng.choice(["picture", "picture", "JSON tensor", "binary tensor"])
    began = time.monotonic()
    if kind == "picture":
        path = f"/v1/tasks/{name}/classify?topk=100"
        answer = await trial.ask("POST", path, trial.truth.pictures[number])
    else:
        body, head = tensor(trial.truth.images[number : number + 1], kind == "binary tensor")
        answer = await trial.ask("POST", f"/v2/models/{name}/infer", body, head)
    if answer is None:
        return
    trial.count(kind, answer.status, 200, *([404, 503] if name in trial.churned else []))
    if answer.status == 200:
        trial.seconds.append(time.monotonic() - began)
        wanted = trial.truth.logits[name][:, number]
        if not matches(answer, kind, wanted):
            trial.wrong.append(f"{kind}: a wrong answer for {name}")


def tensor(images: np.ndarray, binary: bool) -> tuple[bytes, str]:
    """The body and a header of an inference request."""
    stated: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
    if not binary:
        stated["data"] = images.ravel().tolist()
        return json.dumps({"inputs": [stated]}).encode(), ""
    stated["parameters"] = {"binary_data_size": images.nbytes}
    text = json.dumps({"inputs": [stated]}).encode()
    return text + images.tobytes(), f"Inference-Header-Content-Length: {len(text)}\r\n"


def matches(answer: Answer, kind: str, wanted: np.ndarray) -> bool:
    """Whether the answer is that of one of the task's versions, [2, classes]."""
    content = json.loads(answer.body)
    if kind == "picture":
        p = np.exp(wanted - wanted.max(axis=1, keepdims=True))
        wanted = p / p.sum(axis=1, keepdims=True)
        by_class = {q["class"]: q["probability"] for q in content["predictions"]}
        given = np.array([by_class[str(i)] for i in range(wanted.shape[1])])
    else:
        given = np.array(content["outputs"][0]["data"])
    limits = TOLERANCE * np.maximum(1, np.abs(wanted).max(axis=1))
    return bool((np.abs(wanted - given).max(axis=1) <= limits).any())


async def churn(trial: Trial, rng: random.Random) -> None:
    """Unloads and loads tasks, and replaces them by their other version."""
    name = rng.choice(trial.churned)
    path = f"/v2/repository/models/{name}"
    if rng.random() < 0.5:
        answer = await trial.ask("POST", f"{path}/unload")
        if answer:
            trial.count("unload", answer.status, 200)
    put_version(trial.folder, name, rng.randrange(2))
    answer = await trial.ask("POST", f"{path}/load")
    if answer:
        trial.count("load", answer.status, 200)
    await asyncio.sleep(0.1)


def bomb() -> bytes:
    """A picture of 100 million pixels in a few kilobytes."""
    out = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(out, "PNG")
    return out.getvalue()


async def bad(trial: Trial, rng: random.Random) -> None:
    """Requests that are answered with an error at once."""
    picture, classify = trial.truth.pictures[0], "/v1/tasks/task000/classify"
    kind, method, path, body, *allowed = rng.choice(
        [
            ("broken picture", "POST", classify, picture[: len(picture) // 2], 400),
            ("broken picture", "POST", classify, rng.randbytes(5000), 400),
            ("empty picture", "POST", classify, b"", 400),
            ("unknown task", "POST", "/v1/tasks/nobody/classify", picture, 404),
            ("path as a name", "POST", "/v2/repository/models/..%2fsecret/load", b"", 404),
            ("path as a name", "POST", "/v2/repository/models/%2fetc%2fpasswd/load", b"", 404),
            ("link outside", "POST", "/v2/repository/models/link/load", b"", 403),
            ("broken JSON", "POST", "/v2/models/task000/infer", b'{"inputs": [[', 400),
            ("deep JSON", "POST", "/v2/models/task000/infer", b"[" * 100_000, 400),
            ("wrong method", "GET", classify, b"", 405),
        ]
    )
    answer = await trial.ask(method, path, body)
    if answer:
        trial.count(kind, answer.status, *allowed)
    await asyncio.sleep(0.02)


class Bombs:
    """Sends pictures of far too many pixels."""

    def __init__(self) -> None:
        self._bomb = bomb()

    async def __call__(self, trial: Trial, rng: random.Random) -> None:
        answer = await trial.ask("POST", "/v1/tasks/task000/classify", self._bomb)
        if answer:
            trial.count("decompression bomb", answer.status, 400)
        await asyncio.sleep(0.2)


async def connection(
    trial: Trial, kind: str, talk: Callable[[asyncio.StreamWriter], Awaitable[None]], *allowed: Any
) -> None:
    """A connection that does what `talk` does; the server must end it."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", trial.port)
    except GONE:
        trial.refused_at_end += bool(trial.ended_at)
        if not trial.ended_at:
            trial.wrong.append(f"{kind}: no connection")
        return
    status: int | str = "closed"
    talking = asyncio.ensure_future(talk(writer))
    try:
        first = await asyncio.wait_for(reader.read(65536), PATIENCE)
        status = int(first.split()[1]) if first else "closed"
    except GONE:
        status = "closed"
    except TimeoutError:
        status = "still open"
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    writer.close()
    trial.count(kind, status, *allowed)


HEAD = b"POST /v1/tasks/task000/classify HTTP/1.1\r\nHost: localhost\r\n"


async def drip(writer: asyncio.StreamWriter) -> None:
    """A body of which a byte comes now and then."""
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.2)


async def half_a_head(writer: asyncio.StreamWriter) -> None:
    """A head that does not end."""
    writer.write(HEAD)


async def silence(writer: asyncio.StreamWriter) -> None:
    """Nothing at all."""


async def flood(writer: asyncio.StreamWriter) -> None:
    """A body without a stated size, far above the limit."""
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    for _ in range(16 * 24):
        writer.write(chunk)
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def lie(writer: asyncio.StreamWriter) -> None:
    """More bytes than the head says."""
    writer.write(HEAD + b"Content-Length: 10\r\n\r\n" + bytes(1_000_000))


async def slow(trial: Trial, rng: random.Random) -> None:
    """Clients that wait for the server to lose patience."""
    kind, talk, *allowed = rng.choice(
        [
            ("slow body", drip, 408),
            ("half a head", half_a_head, 408),
            ("half-open connection", silence, "closed"),
        ]
    )
    await connection(trial, kind, talk, *allowed)


async def greedy(trial: Trial, rng: random.Random) -> None:
    """Bodies above the limit, and heads that lie."""
    kind, talk, *allowed = rng.choice(
        [("oversized body", flood, 413, "closed"), ("lying head", lie, 400)]
    )
    await connection(trial, kind, talk, *allowed)
    await asyncio.sleep(0.1)


async def vanishing(trial: Trial, rng: random.Random) -> None:
    """Clients that do not wait for their answer."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", trial.port)
    except GONE:
        return
    picture = trial.truth.pictures[1]
    writer.write(HEAD + f"Content-Length: {len(picture)}\r\n\r\n".encode() + picture)
    await asyncio.sleep(0.01)
    writer.close()
    trial.count("vanished", "not read")
    await asyncio.sleep(0.05)
