"""The server: its paths and refusals in one process, and the command as a user starts it."""

import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from starlette.testclient import TestClient
from written_factors import trainable, written

from fact_jax import FacTTT, LoRA, UserError
from fact_jax.backbone.vit import ViT
from fact_jax.files.dictionary import Dictionary
from fact_jax.files.factors import read_factors, to_bytes
from fact_jax.images.normalise import normalise
from fact_jax.images.pipeline import decode
from fact_jax.serving.bank import Bank
from fact_jax.serving.predict import Predictor
from fact_jax.serving.server.app import build_app
from fact_jax.serving.server.folder import TaskFolder
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.service import Service
from fact_jax.serving.server.warm_up import WarmUp

NAMES = ["red", "green", "\udce9"]  # the last as in a file name that is not UTF-8
SHOWN = ["red", "green", r"\udce9"]
TOKEN = "0123456789abcdef"


def picture(side: int = 40, kind: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def blank(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(small_vit: tuple[ViT, dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of two methods and two sizes of images, and files that are none."""
    path, (model, _) = tmp_path_factory.mktemp("tasks"), small_vit
    stated: dict[str, Any] = {"class_names": NAMES, "image_size": 16}
    written(path / "a.safetensors", FacTTT(2, 0.5), model.config, 3, **stated)
    more = {"image_size": 32, "normalisation": "inception", "jpeg_quality": 75, "resize": "crop"}
    written(path / "b.safetensors", LoRA(2), model.config, 4, **more)
    (path / "damaged.safetensors").write_bytes(b"no factors")
    (path / "notes.txt").write_text("not a task")
    (path / "out.safetensors").symlink_to(written_outside(path, model))
    (path / "b2.safetensors").symlink_to(path / "b.safetensors")
    return path


def written_outside(path: Path, model: ViT) -> Path:
    outside = path.parent / "secret.safetensors"
    written(outside, FacTTT(2, 0.5), model.config, 3)
    return outside


def made(vit: tuple[ViT, dict], folder: Path, **limits: Any) -> Service:
    bounds = Limits(**{"max_delay_ms": 1, "max_tasks": 10, **limits})
    bank = Bank(*vit, batch_size=4)
    tasks = TaskFolder(folder, bank, bounds, WarmUp(bank, enabled=False))
    tasks.load_all()
    return Service(bank, tasks, bounds)


def test_names_of_combinations_are_served_and_others_are_told(
    small_vit: tuple[ViT, dict], tmp_path: Path
) -> None:
    for name in ("pets-fact_tt+ssf-seed0", "my pets", "x" * 101):
        written(tmp_path / f"{name}.safetensors", FacTTT(2), small_vit[0].config, 3)
    bank, limits = Bank(*small_vit), Limits()
    tasks = TaskFolder(tmp_path, bank, limits, WarmUp(bank, enabled=False))
    reasons = tasks.load_all()
    assert list(bank.names) == ["pets-fact_tt+ssf-seed0"]
    assert set(reasons) == {"my pets", "x" * 101}
    assert all("--max_name" in reason for reason in reasons.values())


def test_tasks_with_and_without_a_dictionary_are_warmed_up_each(
    small_vit: tuple[ViT, dict], tmp_path: Path
) -> None:
    method, config = FacTTT(2), small_vit[0].config
    tree = trainable(method, config, 3)
    shared = Dictionary.of(method, tree["factors"], config, {})
    contents = {"alone": None, "sharing": shared}
    for name, dictionary in contents.items():
        content = to_bytes(method, tree, config, {}, dictionary=dictionary)
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / shared.file_name).write_bytes(shared.content)
    bank = Bank(*small_vit, batch_size=1)
    warm_up = WarmUp(bank)
    TaskFolder(tmp_path, bank, Limits(), warm_up).load_all()
    assert len({warm_up._programs(name) for name in contents}) == 2


@pytest.fixture(scope="module")
def client(small_vit: tuple[ViT, dict], folder: Path) -> Iterator[TestClient]:
    with TestClient(build_app(made(small_vit, folder))) as client:
        yield client


def alone(vit: tuple[ViT, dict], path: Path, picture: bytes) -> np.ndarray:
    """The logits of a picture by a Predictor, preprocessed as the file says."""
    task = read_factors(path)
    stated = task.metadata
    way = stated.get("resize", "square")
    pixels = decode(picture, stated["image_size"], stated.get("jpeg_quality"), resize=way)
    steps = task.metadata.get("normalisation", "imagenet")
    return Predictor(*vit, task).logits(np.asarray(normalise(pixels[None], steps)))[0]


@pytest.mark.parametrize("name", ["a", "b", "b2"])
def test_a_picture_gets_the_probabilities_of_its_task_s_predictor(
    small_vit: tuple[ViT, dict], folder: Path, client: TestClient, name: str
) -> None:
    wanted = alone(small_vit, folder / f"{name}.safetensors", picture())
    p = np.exp(wanted) / np.exp(wanted).sum()
    raw = client.post(f"/v1/tasks/{name}/classify?topk=2", content=picture())
    form = client.post(
        f"/v1/tasks/{name}/classify", files={"image": ("x.png", picture())}, data={"topk": "2"}
    )
    assert raw.json() == form.json()
    predictions = raw.json()["predictions"]
    classes = SHOWN if name == "a" else list("0123")
    assert [q["class"] for q in predictions] == [classes[i] for i in np.argsort(-p)[:2]]
    given = [q["probability"] for q in predictions]
    np.testing.assert_allclose(given, np.sort(p)[::-1][:2], rtol=1e-4)


def test_a_folder_with_a_dictionary_serves_the_tasks_that_share_it(
    small_vit: tuple[ViT, dict], tmp_path: Path
) -> None:
    config, method = small_vit[0].config, FacTTT(2, 0.5)
    trees = [trainable(method, config, 3, seed) for seed in range(2)]
    dictionary = Dictionary.of(method, trees[0]["factors"], config, {})
    (tmp_path / dictionary.file_name).write_bytes(dictionary.content)
    for name, tree in zip("ab", trees, strict=True):
        shared = {**tree, "factors": {**tree["factors"], **dictionary.factors}}
        content = to_bytes(method, shared, config, {"image_size": 16}, dictionary=dictionary)
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    with TestClient(build_app(made(small_vit, tmp_path))) as client:
        for name in "ab":
            answer = client.post(f"/v1/tasks/{name}/classify?topk=3", content=picture()).json()
            logits = alone(small_vit, tmp_path / f"{name}.safetensors", picture())
            p = np.exp(logits) / np.exp(logits).sum()
            given = [q["probability"] for q in answer["predictions"]]
            np.testing.assert_allclose(given, np.sort(p)[::-1], rtol=1e-4)


def infer_body(images: np.ndarray, binary: bool, **more: Any) -> tuple[bytes, dict[str, str]]:
    tensor: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
    if binary:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
    else:
        tensor["data"] = images.tolist()
    text = json.dumps({"inputs": [tensor], **more}).encode()
    if not binary:
        return text, {}
    return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


@pytest.mark.parametrize("binary", [False, True])
def test_tensors_get_the_logits_of_the_predictor(
    small_vit: tuple[ViT, dict], folder: Path, client: TestClient, images: np.ndarray, binary: bool
) -> None:
    wanted = Predictor(*small_vit, read_factors(folder / "a.safetensors")).logits(images)
    body, headers = infer_body(images, binary, id="7", parameters={"binary_data_output": binary})
    answer = client.post("/v2/models/a/infer", content=body, headers=headers)
    if binary:
        length = int(answer.headers["Inference-Header-Content-Length"])
        shown = json.loads(answer.content[:length])
        logits = np.frombuffer(answer.content[length:], "<f4")
    else:
        shown = answer.json()
        logits = np.array(shown["outputs"][0]["data"])
    assert (shown["model_name"], shown["id"]) == ("a", "7")
    assert shown["outputs"][0]["shape"] == [5, 3]
    np.testing.assert_allclose(logits.reshape(5, 3), wanted, rtol=0, atol=1e-4)


def test_a_task_that_is_replaced_within_a_request_answers_as_one_task(
    small_vit: tuple[ViT, dict],
    folder: Path,
    tmp_path: Path,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five images are two parts of at most four; the task has other classes in the second."""
    service, parts, new = made(small_vit, folder), [], tmp_path / "new.safetensors"
    written(new, FacTTT(2, 0.5), small_vit[0].config, 4, image_size=16)
    gather = service.bank._store.gather

    def replaced(numbers: Any, names: Any) -> Any:
        parts.append(len(numbers))
        if len(parts) == 2:
            service.bank.add("a", new)
        return gather(numbers, names)

    monkeypatch.setattr(service.bank._store, "gather", replaced)
    with TestClient(build_app(service)) as client:
        body, headers = infer_body(images, True)
        answer = client.post("/v2/models/a/infer", content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["shape"] == [5, 4]
    assert parts == [4, 1, 4, 1]
    wanted = Predictor(*small_vit, read_factors(new)).logits(images)
    found = np.array(answer.json()["outputs"][0]["data"]).reshape(5, 4)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_metadata_name_labels_and_preprocessing(client: TestClient) -> None:
    model = client.get("/v2/models/b").json()
    assert model["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 32, 32, 3]}]
    assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    steps = {"image_size": 32, "normalisation": "inception", "jpeg_quality": 75, "resize": "crop"}
    assert model["parameters"]["preprocessing"] == steps
    assert client.get("/v2/models/a").json()["parameters"]["labels"] == SHOWN
    assert client.get("/v1/tasks").json()["tasks"][0] == {
        "name": "a",
        "classes": 3,
        "image_size": 16,
    }
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/a/ready", "/"):
        assert client.get(path).status_code == 200


def test_metrics_count_requests_by_route_and_status(client: TestClient) -> None:
    client.get("/v2/models/nobody")
    text = client.get("/metrics").text
    assert re.search(r'factjax_requests_total\{route="model",status="404"\} \d', text)
    assert "factjax_tasks 3.0" in text


REFUSED: dict[str, tuple[str, bytes, int, str]] = {
    "no task": ("/v1/tasks/nobody/classify", b"x", 404, "No task 'nobody' is loaded."),
    "a path as a name": ("/v1/tasks/..%2Fsecret/classify", b"x", 404, "Not Found"),
    "no picture": ("/v1/tasks/a/classify", b"x", 400, "no image of a known format"),
    "a cut picture": ("/v1/tasks/a/classify", picture()[:900], 400, "cannot be decoded"),
    "many pixels": ("/v1/tasks/a/classify", blank(1100), 400, "expected at most 1,000,000"),
    "nothing": ("/v1/tasks/a/classify", b"", 400, "The body is empty"),
    "topk": ("/v1/tasks/a/classify?topk=0", b"x", 400, "topk is '0'"),
    "many bytes": ("/v1/tasks/a/classify", bytes(2**20 + 1), 413, "more than 1 MiB"),
    "no JSON": ("/v2/models/a/infer", b"{", 400, "The request is not sound JSON"),
    "no inputs": ("/v2/models/a/infer", b"{}", 400, "inputs is missing"),
    "deep JSON": ("/v2/models/a/infer", b"[" * 10_000, 400, "nested too deeply"),
    "another size": (
        "/v2/models/a/infer",
        infer_body(np.zeros((1, 8, 8, 3), "float32"), False)[0],
        400,
        "this task takes [n, 16, 16, 3]",
    ),
    "many images": (
        "/v2/models/a/infer",
        infer_body(np.zeros((9, 16, 16, 3), "float32"), False)[0],
        413,
        "9 images in a request; expected at most 8",
    ),
    "a damaged file": ("/v2/repository/models/damaged/load", b"", 400, "not a factor file"),
    "a link outside": ("/v2/repository/models/out/load", b"", 403, "leads out of the folder"),
    "no file": ("/v2/repository/models/c/load", b"", 404, "no factor file 'c.safetensors'"),
    "not loaded": ("/v2/repository/models/c/unload", b"", 404, "No task 'c' is loaded"),
    "files to load": (
        "/v2/repository/models/a/load",
        b'{"parameters": {"file:1/model": "x"}}',
        400,
        "Loading takes no parameters",
    ),
}


@pytest.fixture(scope="module")
def strict(small_vit: tuple[ViT, dict], folder: Path) -> Iterator[TestClient]:
    service = made(small_vit, folder, max_body_mb=1, max_megapixels=1, max_queue=8)
    with TestClient(build_app(service)) as client:
        yield client


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_requests_get_a_sentence_without_paths(
    strict: TestClient, folder: Path, what: str
) -> None:
    path, body, status, text = REFUSED[what]
    answer = strict.post(path, content=body)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]
    assert str(folder.parent) not in answer.text
    assert "Traceback" not in answer.text


def test_a_body_is_counted_while_it_streams_whatever_its_head_says(strict: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(3):
            yield bytes(2**19)

    answer = strict.post("/v1/tasks/a/classify", content=parts())
    assert answer.status_code == 413


def test_tasks_are_unloaded_and_loaded_while_the_server_runs(
    small_vit: tuple[ViT, dict], folder: Path
) -> None:
    with TestClient(build_app(made(small_vit, folder))) as client:
        repository = "/v2/repository/models/a"
        assert client.post(f"{repository}/unload", json={}).status_code == 200
        assert client.post("/v1/tasks/a/classify", content=picture()).status_code == 404
        states = {s["name"]: s for s in client.post("/v2/repository/index").json()}
        assert {n: s["state"] for n, s in states.items()} == {
            **dict.fromkeys(("a", "damaged", "out"), "UNAVAILABLE"),
            **dict.fromkeys(("b", "b2"), "READY"),
        }
        assert states["damaged"]["reason"].startswith("damaged.safetensors is not a factor file")
        assert client.post(f"{repository}/load").status_code == 200
        assert client.post("/v1/tasks/a/classify", content=picture()).status_code == 200


def test_more_tasks_than_allowed_are_refused(small_vit: tuple[ViT, dict], folder: Path) -> None:
    with pytest.raises(UserError, match="Give --max_tasks 5"):
        made(small_vit, folder, max_tasks=2)


def test_the_token_is_asked_for_but_not_by_health_and_page(
    small_vit: tuple[ViT, dict], folder: Path
) -> None:
    client = TestClient(build_app(made(small_vit, folder), TOKEN.encode()))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        answer = client.get("/v1/tasks", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/v1/tasks", headers=right).status_code == 200
    assert client.get("/v2/health/live").status_code == client.get("/").status_code == 200


def test_pages_of_other_sites_are_refused(small_vit: tuple[ViT, dict], folder: Path) -> None:
    """A rebound name, and a page that lets its visitor's browser post."""
    service = made(small_vit, folder)
    client = TestClient(build_app(service, hosts=["LocalHost"]), base_url="http://localhost:80")
    for host in ("localhost", "LOCALHOST:80"):  # a name's capitals mean nothing
        assert client.get("/v1/tasks", headers={"Host": host}).status_code == 200
    assert client.get("/v1/tasks", headers={"Host": "evil.example:80"}).status_code == 403
    path = "/v2/repository/models/a/unload"
    for origin, status in (
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://localhost", 200),
    ):
        answer = client.get("/v2", headers={"Origin": origin, "Host": "localhost"})
        assert answer.status_code == status
    assert client.post(path, headers={"Origin": "http://evil.example"}).status_code == 403


# The command.


@dataclasses.dataclass
class Started:
    """`fact-jax serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body)
        answer = connection.getresponse()
        result = answer.status, json.loads(answer.read())
        connection.close()
        return result


@pytest.fixture
def started(tmp_path: Path, small_config: Any) -> Iterator[Started]:
    import fact_jax

    model, _ = fact_jax.load_vit("vit_mini")
    written(tmp_path / "a.safetensors", FacTTT(2, 0.5), model.config, 3, variant="vit_mini")
    command = [sys.executable, "-m", "experiments.serve", f"--factors={tmp_path}", "--port=0"]
    limits = ["--nowarm_up", "--head_timeout=3", "--body_timeout=3", "--max_delay_ms=1"]
    process = subprocess.Popen(
        [*command, *limits],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told = ""
    try:
        for line in process.stdout:  # XLA may write before it
            told += line
            if found := re.match(r"1 task at http://127\.0\.0\.1:(\d+)/", line):
                break
        assert found, told
        yield Started(process, int(found[1]))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_the_command_serves_ends_slow_clients_and_answers_at_its_end(started: Started) -> None:
    path, body = "/v1/tasks/a/classify", picture()
    status, answer = started.post(path, body)
    assert (status, len(answer["predictions"])) == (200, 3)
    # A head that never ends, one of nothing, a body that never ends, and no HTTP.
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n".encode()
    for sent, status_line in (
        (b"GET / HT", b"HTTP/1.1 408"),
        (b"", b""),
        (head + b"x", b"HTTP/1.1 408"),
        (b"\0\0\r\n\r\n", b"HTTP/1.1 400"),
    ):
        with started.connect() as connection:
            connection.sendall(sent)
            began = time.monotonic()
            assert read_all(connection).startswith(status_line), sent
            assert time.monotonic() - began < 60
    # SIGTERM while requests wait: accepted ones are answered, and the connection ends.
    waiting = [started.connect() for _ in range(4)]
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    for connection in waiting:
        connection.sendall(request.encode() + body)
    started.process.send_signal(signal.SIGTERM)
    for connection in waiting:
        with connection:
            assert read_all(connection).startswith(b"HTTP/1.1 200")
    assert started.process.wait(30) == 0
    assert started.process.stdout is not None
    out = started.process.stdout.read()
    assert "every request that was accepted has its answer" in out
    assert "Traceback" not in out
