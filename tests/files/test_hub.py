"""``hf:owner/name`` through huggingface_hub itself, against a hub of our own on loopback."""

import base64
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
from places import ROOT
from safetensors.numpy import save
from weight_layouts import timm
from written_factors import assert_same, trainable, written

from fact_jax import FacTTT, LoRA, get_variant, load_factors
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import to_bytes
from fact_jax.files.peft_writing import adapter_files
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum
from fact_jax.serving.folders import card_of

TOKEN = "hf_a_token_that_nobody_may_see"
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
    created: list[dict] = []

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

    @property
    def here(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def do_POST(self):
        """Answers the steps of an upload: a repository, how files go, a commit of them all."""
        path, body = self.path, self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(b"", 401)
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            name = "/".join(json.loads(body).get(key) for key in ("organization", "name"))
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.here}/{name}"})
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [{**f, "uploadMode": "regular"} for f in json.loads(body)["files"]]
            files = [{k: f[k] for k in ("path", "uploadMode")} for f in files]
            return self.answer({"files": [{**f, "shouldIgnore": False} for f in files]})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[repo][line["value"]["path"]] = content
            return self.answer(
                {"commitUrl": f"{self.here}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        return self.answer(b"", 404)

    def answer(self, body, status=200, headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        sent = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": len(body)}
        for key, value in {**sent, **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
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
    env |= {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}  # the server is on this machine
    env |= {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
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


def run_push(hub, *arguments, token=TOKEN):
    command = [sys.executable, "-m", "experiments.push", *map(str, arguments)]
    env = {**hub[1], "HF_TOKEN": token, "COLUMNS": "200"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_a_task_goes_to_the_hub_and_comes_back(hub, tmp_path):
    Hub.repositories, Hub.created = {}, []
    config, method = get_variant("vit_mini"), FacTTT(2, 1.0)
    names = [f"kind {i}" for i in range(7)]
    more = {"class_names": names, "variant": "vit_mini", "task": "csv_kinds"}
    tree = written(tmp_path / "kinds.safetensors", method, config, **more)
    run = run_push(hub, "--factors", tmp_path / "kinds.safetensors", "--repo=owner/kinds")
    assert run.returncode == 0, run.stderr
    assert "csv_kinds: 2 files are at http://127.0.0.1" in run.stdout
    files = Hub.repositories["owner/kinds"]
    assert files.keys() == {"README.md", "task.safetensors"}
    card = files["README.md"].decode()
    assert 'fact_jax.load_factors("hf:owner/kinds")' in card
    assert "| 6 | kind 6 |" in card
    assert TOKEN not in run.stdout + run.stderr + card
    (tmp_path / "again.safetensors").write_bytes(files["task.safetensors"])
    assert_same(load_factors(tmp_path / "again.safetensors"), tree)
    command = [sys.executable, "-c", LOAD_TASKS, "hf:owner/kinds"]
    run = subprocess.run(command, env=hub[1], capture_output=True, text=True, timeout=120)
    assert run.stdout == "FacTTT 7\n"
    # Another task takes the place of the first.
    written(tmp_path / "other.safetensors", LoRA(2), config, **more)
    run = run_push(hub, "--factors", tmp_path / "other.safetensors", "--repo=owner/kinds")
    assert run.returncode == 0, run.stderr
    assert Hub.repositories["owner/kinds"].keys() == files.keys()


def test_an_exported_folder_goes_to_the_hub_as_it_is(hub, tmp_path):
    Hub.repositories, Hub.created = {}, []
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 100)
    run = run_push(hub, "--factors", tmp_path, "--repo=owner/adapter", "--private")
    assert run.returncode == 0, run.stderr
    assert Hub.repositories["owner/adapter"] == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert Hub.created[0]["visibility" if "visibility" in Hub.created[0] else "private"] in (
        True,
        "private",
    )
    for name in ("config.json", "model.json"):  # of whole models, and of programs
        (tmp_path / "adapter_config.json").rename(tmp_path / name)
        run = run_push(hub, "--factors", tmp_path, "--repo=owner/other")
        assert "To load it" not in run.stdout
        assert run.returncode == 0, run.stderr
        (tmp_path / name).rename(tmp_path / "adapter_config.json")
    (tmp_path / "adapter_config.json").rename(tmp_path / "other.json")
    run = run_push(hub, "--factors", tmp_path, "--repo=owner/adapter")
    assert "holds none of config.json, adapter_config.json, model.json" in run.stderr


def test_a_hub_that_refuses_is_one_sentence_without_the_token(hub, tmp_path):
    written(tmp_path / "t.safetensors", FacTTT(2), get_variant("vit_mini"), variant="vit_mini")
    arguments = ("--factors", tmp_path / "t.safetensors")
    run = run_push(hub, *arguments, "--repo=owner/kinds", token="hf_another")
    assert run.returncode == 2
    assert "The hub refuses to write to owner/kinds (401). Log in with" in run.stderr
    assert "hf_another" not in run.stderr
    run = run_push(hub, *arguments, "--repo=no name/at/all")
    assert "is not a name on the hub; expected owner/name" in run.stderr
    hub[0].shutdown()
    hub[0].server_close()
    run = run_push(hub, *arguments, "--repo=owner/kinds")
    assert "The upload to owner/kinds failed (ConnectError). Is the hub reachable?" in run.stderr
    assert "Traceback" not in run.stderr
