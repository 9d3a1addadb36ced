"""The server and Triton's client: the bytes of the requests that tritonclient sends."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from written_factors import written

from fact_jax import FacTTT
from fact_jax.backbone.vit import ViT
from fact_jax.files.factors import read_factors
from fact_jax.serving.bank import Bank
from fact_jax.serving.predict import Predictor
from fact_jax.serving.server.app import build_app
from fact_jax.serving.server.folder import TaskFolder
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.service import Service
from fact_jax.serving.server.warm_up import WarmUp

# Requests as tritonclient 2.73.0 (geventhttpclient 2.6.1) sends them, but for the port in Host.
AGENT = {"User-Agent": "python/gevent-http-client-2.6.1", "Host": "localhost:8000"}
TRITON_INPUT = b'{"name":"images","shape":[1,16,16,3],"datatype":"FP32"'
TRITON_BINARY = TRITON_INPUT + b',"parameters":{"binary_data_size":3072}}'
TRITON_NUMBERS = TRITON_INPUT + b',"data":[' + b",".join([b"0.0"] * 768) + b"]}"
TRITON_SHARED = (
    TRITON_INPUT
    + b',"parameters":{"shared_memory_region":"region","shared_memory_byte_size":3072}}'
)


@pytest.fixture(scope="module")
def path(small_vit: tuple[ViT, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `a`."""
    path = tmp_path_factory.mktemp("tasks")
    written(path / "a.safetensors", FacTTT(2, 0.5), small_vit[0].config, 3, image_size=16)
    return path


@pytest.fixture(scope="module")
def client(small_vit: tuple[ViT, dict], path: Path) -> Iterator[TestClient]:
    bank, limits = Bank(*small_vit, batch_size=4), Limits(max_delay_ms=1)
    tasks = TaskFolder(path, bank, limits, WarmUp(bank, enabled=False))
    tasks.load_all()
    with TestClient(build_app(Service(bank, tasks, limits))) as client:
        yield client


def triton(tensor: bytes, parameters: bytes, first: bytes = b"") -> bytes:
    """The JSON text of a request that asks for the logits by these parameters."""
    wanted = b'"outputs":[{"name":"logits","parameters":{' + parameters + b"}}]"
    return b"{" + first + b'"inputs":[' + tensor + b"]," + wanted + b"}"


def triton_infer(
    client: TestClient, text: bytes, raw: bytes, version: str = "", **headers: str
) -> Any:
    length = {"Inference-Header-Content-Length": str(len(text))} if raw else {}
    path = f"/v2/models/a{version}/infer"
    return client.post(path, content=text + raw, headers={**AGENT, **length, **headers})


@pytest.mark.parametrize(
    ("text", "raw", "version"),
    [
        (triton(TRITON_BINARY, b'"binary_data":true', b'"id":"r1",'), bytes(3072), "/versions/1"),
        (triton(TRITON_NUMBERS, b'"binary_data":false'), b"", ""),
        (
            b'{"inputs":[' + TRITON_BINARY + b'],"parameters":{"binary_data_output":true}}',
            bytes(3072),
            "",
        ),
    ],
)
def test_triton_s_client_gets_logits(
    small_vit: tuple[ViT, dict],
    path: Path,
    client: TestClient,
    text: bytes,
    raw: bytes,
    version: str,
) -> None:
    """Every form of its requests, the answer compressed if the client would take it so."""
    task = read_factors(path / "a.safetensors")
    wanted = Predictor(*small_vit, task).logits(np.zeros((1, 16, 16, 3), np.float32))
    answer = triton_infer(client, text, raw, version, **{"Accept-Encoding": "gzip"})
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    shown = json.loads(answer.content[:length])
    assert shown.get("id") == json.loads(text).get("id")
    output = shown["outputs"][0]
    logits = output.get("data") or np.frombuffer(answer.content[length:], "<f4")
    np.testing.assert_allclose([logits], wanted, rtol=0, atol=1e-4)


DEFLATED = base64.b64decode(
    "eJzt10EKgzAQheG7zDoUreDCA3TdvYQy0tQGNIZkXEjI3Zvgziv0Qb7Nm1zgT2Sd3yXSMCZyvBoayK48m0iK4pd9Gc"
    "ZWtX19nVb0ZmE56kyPZ3encymfmlujAAAAAADgL+hc4mDb5RoTyzZbqTHhOZRFTCjnRJN1HI7X2Q4fXqLJWecfEtFd"
    "Tw=="
)  # TRITON_NUMBERS
TRITON_REFUSED: dict[str, tuple[str, bytes, bytes, dict[str, str], int, str]] = {
    "version 7": ("/versions/7", b"{}", b"", {}, 404, "A task has only version 1, not '7'"),
    "deflate": ("", DEFLATED, b"", {"Content-Encoding": "deflate"}, 415, "compressed by 'deflate'"),
    "classes": (
        "",
        triton(TRITON_BINARY, b'"classification":2,"binary_data":true'),
        bytes(3072),
        {},
        400,
        "has no 'classification': leave it out",
    ),
    "an input in shared memory": (
        "",
        triton(TRITON_SHARED, b'"binary_data":true'),
        b"",
        {},
        400,
        "has no 'shared_memory_region'",
    ),
    "an output in shared memory": (
        "",
        triton(TRITON_BINARY, b'"shared_memory_region":"region","shared_memory_byte_size":40'),
        bytes(3072),
        {},
        400,
        "has no 'shared_memory_region'",
    ),
}


@pytest.mark.parametrize("what", TRITON_REFUSED)
def test_what_triton_s_client_may_ask_for_in_vain(client: TestClient, what: str) -> None:
    version, text, raw, headers, status, sentence = TRITON_REFUSED[what]
    answer = triton_infer(client, text, raw, version, **headers)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def test_triton_s_client_finds_a_version_and_changes_the_repository(client: TestClient) -> None:
    for path in ("/v2/models/a/versions/1", "/v2/models/a/versions/1/ready"):
        assert client.get(path, headers=AGENT).status_code == 200
    assert client.get("/v2/models/a/versions/2/ready", headers=AGENT).status_code == 404
    repository = "/v2/repository/models/a"
    unload = b'{"parameters":{"unload_dependents":false}}'
    assert client.post(f"{repository}/unload", content=unload, headers=AGENT).status_code == 200
    assert client.get("/v2/models/a/ready", headers=AGENT).status_code == 404
    index = client.post("/v2/repository/index", content=b"", headers=AGENT).json()
    assert index[0] == {"name": "a", "version": "1", "state": "UNAVAILABLE", "reason": ""}
    assert client.post(f"{repository}/load", content=b"{}", headers=AGENT).status_code == 200
    assert client.get("/v2/models/a/ready", headers=AGENT).status_code == 200
    other = b'{"parameters":{"config":"{}"}}'
    assert client.post(f"{repository}/load", content=other, headers=AGENT).status_code == 400
