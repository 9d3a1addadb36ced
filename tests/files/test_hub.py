"""``hf:owner/name`` through huggingface_hub itself, against a hub of our own on loopback."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import save
from weight_layouts import timm
from written_factors import trainable

from fact_jax import FacTTT, get_variant, load_factors
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import to_bytes
from fact_jax.files.peft_writing import adapter_files
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum
from fact_jax.serving.folders import card_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from fact_jax import UserError, load_vit
from fact_jax.files.weights import checksum
from fact_jax.serving.folders import card_of
for name in sys.argv[1:]:
    try:
        print(checksum(load_vit("vit_ti16", name)[1]))
    except UserError as error:
        print("error:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub as downloads need it: a repository's list of files, and its files."""

    repositories: dict[str, dict[str, bytes]]
    served: list[str]

    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[1]
        for repo, files in self.repositories.items():
            if path == f"/api/models/{repo}/revision/main":
                siblings = [{"rfilename": name} for name in files]
                return self.answer({"id": repo, "sha": COMMIT, "siblings": siblings})
            if path == f"/api/models/{repo}/tree/{COMMIT}":
                return self.answer(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": name}
                        for name, content in files.items()
                    ]
                )
            if path == f"/{repo}/resolve/{COMMIT}/{name}" and name in files:
                if self.command == "GET":
                    self.served.append(name)
                return self.answer(files[name])
        return self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, body, status=200, headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        sent = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)}
        for key, value in {**sent, **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def base():
    return init_base(get_variant("vit_ti16"), jax.random.key(0))


def load(env, *names):
    """The checksum of each repository's weights, or the error, from a process of its own."""
    command = [sys.executable, "-c", LOAD, *names]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture
def hub(base, tmp_path):
    """(server, environment of a process that uses it)."""
    tensors = timm(jax.tree.map(np.asarray, base))
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in (0, 1)}
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    Hub.repositories = {
        "owner/vit": {
            "README.md": b"not wanted",
            "pytorch_model.bin": b"not wanted: there are safetensors",
            "config.json": b"{}",
            "model.safetensors": save(tensors),
        },
        "owner/shards": {
            "model.safetensors.index.json": json.dumps(index).encode(),
            **{shard: save({n: tensors[n] for n in inside}) for shard, inside in shards.items()},
        },
        "owner/pytorch": {"pytorch_model.bin": torch_bytes(tensors)},
    }
    Hub.served = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    yield server, {**env, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()


def test_shards_and_pytorch_files(base, hub):
    names = ("owner/shards", "owner/pytorch")
    assert load(hub[1], *(f"hf:{name}" for name in names)) == [checksum(base)] * 2
    assert sorted(Hub.served) == sorted(n for name in names for n in Hub.repositories[name])


def test_a_repository_is_fetched_once_and_used_without_a_network(base, hub):
    server, env = hub
    *sums, none = load(env, "hf:owner/vit", "hf:owner/vit@main", "hf:owner/none")
    assert sums == [checksum(base)] * 2
    assert sorted(Hub.served) == ["config.json", "model.safetensors"]
    assert "RepositoryNotFound" in none
    server.shutdown()
    server.server_close()
    known, none, wrong = load(env, "hf:owner/vit", "hf:owner/none", "hf:a/b/c")
    assert known == checksum(base)
    assert none.startswith("error:")
    assert "hf:owner/none" in none
    assert "give the folder's path" in none
    assert "expected hf:owner/name" in wrong


LOAD_TASKS = """
import sys
from fact_jax import UserError, load_factors
for name in sys.argv[1:]:
    try:
        task = load_factors(name)
        print(type(task.method).__name__, task.num_classes)
    except UserError as error:
        print("error:", error)
"""


def test_adapters_and_factor_files_of_repositories(hub, tmp_path):
    config, method = get_variant("vit_mini"), FacTTT(2, 1.0)
    content = to_bytes(method, trainable(method, config), config, {})
    (tmp_path / "f.safetensors").write_bytes(content)
    task = load_factors(tmp_path / "f.safetensors")
    adapter = adapter_files(task, config, card_of(task, config, "", {}))
    Hub.repositories = {
        "owner/adapter": adapter,
        "owner/ours": {"README.md": b"not wanted", "task.safetensors": content},
        "owner/neither": {"README.md": b"not wanted"},
    }
    names = [f"hf:{name}" for name in Hub.repositories]
    command = [sys.executable, "-c", LOAD_TASKS, *names]
    run = subprocess.run(command, env=hub[1], capture_output=True, text=True, timeout=120)
    *found, refused = run.stdout.splitlines()
    assert found == ["LoRA 7", "FacTTT 7"], run.stderr
    assert "hf:owner/neither holds neither adapter_config.json" in refused
    assert sorted(Hub.served) == sorted({*adapter, "task.safetensors"} - {"README.md"})
