"""A batch over many tasks: the bank beside merged weights and beside peft, and what tasks cost.

    python -m benchmarks.bank [--batch 16] [--rounds 7] [--stored 10000] [--methods NAMES]
        [--peer_python PATH] [--out FILE]

Time: the bank's `logits` of a batch with an image of each task, after one another with
`Predictor.logits` of the same images from one task's merged weights, in --rounds rounds; the best
of each counts. Every system is one call with NumPy arrays on both sides. The peer is peft's
`adapter_names` (`bank_peer.py`), in a process of its own that waits while others run. --peer_python
is a Python that has torch, transformers and peft, by default this one.

Methods: each of --methods alone, its tasks in the bank beside a Predictor of one of them. Merging
is what this Predictor costs at first: the seconds, the bytes of its weights, and the batches after
which the seconds are repaid.

Memory: a process for each type fills a bank with --stored tasks of FacT-TT rank 4 and heads of one
class (`bank_memory.py`).

Errors: of the bank's logits to the Predictor's, max |difference| / max |logit|, for each type.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, store
from benchmarks.network import network
from fact_jax import FacTTT, LoRA, Predictor, ViT
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import TrainedTask
from fact_jax.serving.bank import Bank
from fact_jax.serving.stack import DTYPES
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import merged
from fact_jax.tuning import METHODS
from fact_jax.tuning.method import Method

CLASSES = 10
REFERENCE = "Predictor, merged FacT-TT 16"
PEER = "peft, LoRA 8 by adapter_names"
SETTINGS = {"fact_tt": {"rank": 16}, "fact_tk": {"rank": 32}, "fact_shared": {"rank": 4}}
NOT_ALONE = ("full", "noah", "noah_subnet")
Vit = tuple[ViT, Any]


def random_task(vit: Vit, method: Method, seed: int, classes: int = CLASSES) -> TrainedTask:
    """A task whose increments are not zero, and whose head is random."""
    (model, base), rng = vit, np.random.default_rng(seed)

    def near(leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        return np.asarray(leaf) + 0.02 * noise

    factors: Any = jax.tree.map(near, method.init(jax.random.key(0), model.config, base))
    width = model.config.width
    head: Any = {
        "kernel": rng.standard_normal((width, classes), np.float32) * width**-0.5,
        "bias": np.zeros(classes, np.float32),
    }
    return TrainedTask(method, factors, head, {"vit": {}}, Path(f"{seed}.safetensors"))


def filled(vit: Vit, method: Method, count: int, **settings: Any) -> Bank:
    """A bank of this many tasks, named by their numbers."""
    bank = Bank(*vit, capacity=count, **settings)
    step = 256  # so that the host never holds all
    for start in range(0, count, step):
        numbers = range(start, min(start + step, count))
        bank.add_all({str(i): random_task(vit, method, i) for i in numbers})
    return bank


def mixed(bank: Bank, images: np.ndarray) -> Callable[[], Any]:
    """A call for images of as many tasks as there are."""
    every = bank.names
    names = [every[i * len(every) // len(images)] for i in range(len(images))]
    return lambda: bank.logits(images, names)


class Peer:
    """The process of bank_peer.py."""

    def __init__(self, python: str, batch: int):
        command = [python, "-m", "benchmarks.bank_peer", "--batch", str(batch)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, "--tasks", str(batch)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        word, _, versions = self._out.readline().partition(" ")
        if word != "ready":
            _, errors = self._process.communicate()
            raise OSError((errors.strip().splitlines() or ["it said nothing"])[-1])
        self.versions = json.loads(versions)

    def __call__(self) -> float:
        """Runs a batch; its seconds by the peer's own clock."""
        self._in.write("\n")
        self._in.flush()
        return float(self._out.readline())

    def close(self) -> None:
        self._in.close()
        self._process.wait()


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(systems: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the systems, one after the other in each round, after one call of each."""
    for call in systems.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, call in systems.items():
            times[name].append(call())
    return times


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    return lambda: seconds(call)


def replaced(bank: Bank, task: TrainedTask, times: int = 20) -> float:
    """Seconds to replace a task, the mean of several."""

    def all_of_them() -> None:
        for _ in range(times):
            bank.add("0", task)

    return seconds(all_of_them) / times


def compare(a: argparse.Namespace, vit: Vit, images: np.ndarray, console: Console) -> Any:
    """Seconds of a batch by each system, and ratios to merged inference of one task."""
    tt, lora = FacTTT(16, 0.1), LoRA(8, 1.0)
    sizes = few, many = tuple(filled(vit, FacTTT(4, 0.1), n) for n in (a.batch, a.stored))
    other = filled(vit, tt, a.batch // 2)
    half = {f"lora {i}": random_task(vit, lora, i) for i in range(a.batch - a.batch // 2)}
    other.add_all(half)
    one = filled(vit, lora, 1)
    systems = {
        REFERENCE: timed(lambda: reference.logits(images)),
        "Predictor, merged LoRA 8": timed(lambda: lora_alone.logits(images)),
        f"bank, FacT-TT 16, {a.batch} tasks": timed(mixed(filled(vit, tt, a.batch), images)),
        f"bank, FacT-TT 4, {a.batch} tasks": timed(mixed(few, images)),
        f"bank, FacT-TT 4, {a.stored} tasks": timed(mixed(many, images)),
        f"bank, LoRA 8, {a.batch} tasks": timed(mixed(filled(vit, lora, a.batch), images)),
        "bank, LoRA 8, one task": timed(mixed(one, images)),
        "bank, FacT-TT 16 and LoRA 8 in a batch": timed(mixed(other, images)),
    }
    reference = Predictor(*vit, random_task(vit, tt, 0), a.batch)
    lora_alone = Predictor(*vit, random_task(vit, lora, 0), a.batch)
    try:
        peer = Peer(a.peer_python, a.batch) if a.variant == "vit_b16" else None
    except OSError as error:
        console.print(f"{PEER}: left out: {error}", markup=False)
        peer = None
    times = alternate(systems | ({PEER: peer} if peer else {}), a.rounds)
    best = min(times[REFERENCE])
    rows = {
        name: {"seconds": some, "ratio_to_merged": min(some) / best} for name, some in times.items()
    }
    if peer:
        peer.close()
        ours = min(times[f"bank, LoRA 8, {a.batch} tasks"])
        rows[PEER] |= {"versions": peer.versions, "bank_over_peer": ours / min(times[PEER])}
    few_best, many_best = (min(times[f"bank, FacT-TT 4, {n} tasks"]) for n in (a.batch, a.stored))
    adding = {
        len(bank.names): replaced(bank, random_task(vit, FacTTT(4, 0.1), 0)) for bank in sizes
    }
    return {"systems": rows, "stored_ratio": many_best / few_best, "add_seconds": adding}


def merging(vit: Vit, task: TrainedTask) -> Callable[[], Any]:
    """A call that merges a task's weights anew."""
    (model, base), factors = vit, task.factors
    return lambda: jax.block_until_ready(merged(task.method, model.config, base, factors)[0])


def by_method(a: argparse.Namespace, vit: Vit, images: np.ndarray) -> list[dict[str, Any]]:
    """Each method in the bank, a task an image, beside a Predictor of one of its tasks."""
    rows = []
    for name in a.methods.split(","):
        method = METHODS[name](**SETTINGS.get(name, {}))
        bank = filled(vit, method, a.batch)
        predictor = Predictor(*vit, random_task(vit, method, 0), a.batch)
        merge = merging(vit, random_task(vit, method, 0))
        row = alternate(
            {
                "predictor_seconds": timed(lambda p=predictor: p.logits(images)),
                "bank_seconds": timed(mixed(bank, images)),
                "merge_seconds": timed(merge),
            },
            a.rounds,
        )
        alone, several, once = (min(times) for times in row.values())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(merge()))
        row |= {"ratio": several / alone, "merged_bytes": size}
        repaid = once / (several - alone) if several > alone else None
        rows.append({"method": name, **row, "repaid_after_batches": repaid})
    return rows


def errors(vit: Vit, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Errors of the logits by the type in which factors and heads are stored."""
    found: dict[str, dict[str, float]] = {}
    for name, method in {"FacT-TT 16": FacTTT(16, 0.1), "LoRA 8": LoRA(8, 1.0)}.items():
        task = random_task(vit, method, 0)
        exact = Predictor(*vit, task, len(images)).logits(images)
        for dtype in DTYPES:
            bank = Bank(*vit, capacity=1, dtype=dtype)
            bank.add("0", task)
            difference = np.abs(np.stack(bank.logits(images, "0")) - exact).max()
            found.setdefault(dtype, {})[name] = float(difference / np.abs(exact).max())
    return found


def memory(a: argparse.Namespace) -> dict[str, Any]:
    """Runs bank_memory.py for each type; its results by type."""
    rows = {}
    for dtype in DTYPES:
        command = [sys.executable, "-m", "benchmarks.bank_memory", "--tasks", str(a.stored)]
        command += ["--stored_as", dtype, "--variant", a.variant, "--image_size", str(a.image_size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bank_memory: {done.stderr.strip().splitlines()[-1]}")
        rows[dtype] = json.loads(done.stdout.splitlines()[-1])
    return rows


def show(content: dict[str, Any], console: Console) -> None:
    table = Table("system", "ms a batch", "ratio to merged inference of one task")
    for name, row in content["systems"].items():
        table.add_row(name, f"{1e3 * min(row['seconds']):.0f}", f"{row['ratio_to_merged']:.3f}")
    console.print(table)
    table = Table("method", "Predictor: ms a batch", "bank: ms a batch", "ratio")
    for title in ("merging: ms", "MB of merged weights", "batches to repay it"):
        table.add_column(title)
    for row in content["methods"]:
        keys = ("predictor_seconds", "bank_seconds", "merge_seconds")
        alone, several, merge = (f"{1e3 * min(row[key]):.0f}" for key in keys)
        repaid = row["repaid_after_batches"]
        cost = (merge, f"{row['merged_bytes'] / 1e6:.0f}", f"{repaid:.1f}" if repaid else "never")
        table.add_row(row["method"], alone, several, f"{row['ratio']:.3f}", *cost)
    console.print(table)
    table = Table("stored as", "MB of factors", "MB of heads", "MB of the process", "tasks/s added")
    for dtype, row in content["memory"].items():
        sizes = (row[key] / 1e6 for key in ("factor_bytes", "head_bytes", "resident_bytes"))
        table.add_row(dtype, *(f"{size:.0f}" for size in sizes), f"{row['added_per_s']:.0f}")
    console.print(table)
    console.print(
        f"stored_ratio {content['stored_ratio']:.3f}, add_seconds {content['add_seconds']}"
    )
    console.print("errors", content["errors"])


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch", "rounds", batch=16, rounds=7)
    parser.add_argument("--stored", type=int, default=10_000, help="tasks of the large bank")
    alone = ",".join(name for name in METHODS if name not in NOT_ALONE)
    parser.add_argument("--methods", default=alone, help="with commas between them")
    parser.add_argument("--peer_python", default=sys.executable)
    a = parser.parse_args()
    console, config = Console(width=120), network(a)
    content: dict[str, Any] = {"environment": environment(), "memory": memory(a)}
    store(a, content, "peer_python")  # each part at once
    vit: Vit = ViT(config), init_base(config, jax.random.key(0))
    shape = (a.batch, config.image_size, config.image_size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    content |= compare(a, vit, images, console)
    store(a, content, "peer_python")
    content |= {"errors": errors(vit, images), "methods": by_method(a, vit, images)}
    store(a, content, "peer_python")
    show(content, console)


if __name__ == "__main__":
    main()
