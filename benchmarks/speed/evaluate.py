"""The streamed test pipeline: decode, resize, transfer, predict, and how long the network waits.

    python -m benchmarks.evaluate [--variant vit_b16] [--images 512] [--batch 64]
        [--dtype float32] [--threads N] [--rounds 3] [--out FILE.json]

Pictures are JPEG files of 500 x 375 pixels, made here and held in memory; Pillow's decoding and
resizing, the threads and the evaluation are the very functions that a sweep streams its test splits
with (images/pipeline.py, training/evaluation.py); TensorFlow's reading of records is left out. All
stages are run one after the other in --rounds rounds, and the best of each counts.

- predict alone: the images are on the device already.
- from memory: decoded images on the host, padded and transferred batch by batch, and the merging
  of the weights.
- streamed: all of it, decoding in threads while the device predicts.

The share of the streamed time that the device waits is given twice: as 1 - predict alone /
streamed, and measured, the time in which no prediction was under way (from the end of one to the
start of the next; a transfer after the start is not in it). On a CPU decoding and predicting share
the cores, so that predicting is slower while decoding, and the first number has that in it.
"""

import argparse
import functools
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.common import CLASSES, option_parser, store
from benchmarks.network import network
from fact_jax import FacTTT, ViT
from fact_jax.backbone.vit import init_base
from fact_jax.images.pipeline import decode, map_ahead
from fact_jax.sweep.versions import environment
from fact_jax.training import evaluation
from fact_jax.training.evaluation import Evaluator, Merged, predict
from fact_jax.training.mesh import batch_sharded, make_mesh, put, replicated
from fact_jax.training.step import TrainStep

WIDTH, HEIGHT, DIFFERENT = 500, 375, 64


def pictures(count: int) -> list[bytes]:
    """JPEG files of quality 90 with coarse shapes and some grain; at most 64 are different.

    They are as large as photographs of that size (50 to 60 KB).
    """
    rng = np.random.default_rng(0)
    files = []
    for _ in range(min(count, DIFFERENT)):
        picture = rng.normal(0, 5, (HEIGHT, WIDTH, 3))
        for size in (4, 16, 64):
            coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            picture += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) / 3.0
        buffer = io.BytesIO()
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return [files[i % len(files)] for i in range(count)]


def decoded(files: list[bytes], size: int, batch: int, threads: int | None) -> Iterator[np.ndarray]:
    """Batches uint8 [<= batch, size, size, 3], as TaskData streams them."""
    rows: list[np.ndarray] = []
    one = functools.partial(decode, size=size)
    for row in map_ahead(one, files, ahead=2 * batch, num_threads=threads):
        rows.append(row)
        if len(rows) == batch:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


class Watch:
    """Times of an evaluation's predictions: before each is dispatched, and when it has ended."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._starts: list[float] = []
        self._ends: list[Future[float]] = []

    def predict(self, *inputs: Any) -> jax.Array:
        """`evaluation.predict`, watched."""

        def end(out: jax.Array) -> float:
            out.block_until_ready()
            return time.perf_counter()

        self._starts.append(time.perf_counter())
        out = predict(*inputs)
        self._ends.append(self._pool.submit(end, out))
        return out

    def idle(self, start: float) -> float:
        """Seconds since `start` in which none was under way; forgets all."""
        ends = [start, *(future.result() for future in self._ends)]
        gaps = (max(0.0, a - b) for a, b in zip(self._starts, ends, strict=False))
        self._starts, self._ends, total = [], [], sum(gaps)
        return total


class Pipeline:
    """A network and pictures, and the stages of evaluating the one on the others."""

    def __init__(self, a: argparse.Namespace):
        config = network(a)
        self.size, self.batch, self.threads = config.image_size, a.batch, a.threads
        model, method, mesh = ViT(config), FacTTT(16), make_mesh(a.batch)
        base = init_base(config, jax.random.key(0))
        state = TrainStep(model, method, "imagenet", a.batch, mesh).init(0, CLASSES, CLASSES)
        on_mesh = put((base, state.trainable), replicated(mesh))
        self._merge = functools.partial(Merged.of, method, config, *on_mesh, 1.0)
        self.watch, self._evaluator = Watch(), Evaluator(config, "imagenet", a.batch, mesh)
        self._merged = self._merge()
        self.files = pictures(a.images)
        self._in_memory = list(decoded(self.files, self.size, a.batch, a.threads))
        self._on_device = [
            jax.device_put(
                np.pad(x, ((0, a.batch - len(x)), (0, 0), (0, 0), (0, 0))), batch_sharded(mesh)
            )
            for x in self._in_memory
        ]

    def _run(self, batches: Iterable[np.ndarray]) -> None:
        labels = np.zeros(self.batch, np.int32)
        labelled = ((images, labels[: len(images)]) for images in batches)
        with mock.patch.object(evaluation, "predict", self.watch.predict):
            _, total = self._evaluator.count(self._merge(), CLASSES, labelled)
        if total != len(self.files):
            raise RuntimeError(f"{total} of {len(self.files)} images were evaluated")

    def decode(self, threads: int) -> None:
        for _ in decoded(self.files, self.size, self.batch, threads):
            pass

    def predict(self) -> None:
        """One batch is dispatched ahead, as in a sweep."""
        last = None
        for images in self._on_device:
            current = predict(
                self._evaluator.config, "imagenet", self._merged, np.int32(CLASSES), images
            )
            if last is not None:
                np.asarray(last)
            last = current
        np.asarray(last)

    def from_memory(self) -> None:
        self._run(self._in_memory)

    def streamed(self) -> None:
        self._run(decoded(self.files, self.size, self.batch, self.threads))


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each stage in all rounds, and what follows from the best ones."""
    pipeline, cores = Pipeline(a), os.cpu_count() or 1
    counts = sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    stages: dict[str, Callable[[], Any]] = {
        f"decode alone, {n} thread{'s' if n > 1 else ''}": functools.partial(pipeline.decode, n)
        for n in counts
    }
    stages["predict alone"] = pipeline.predict
    stages["from memory"] = pipeline.from_memory
    stages["streamed"] = pipeline.streamed
    pipeline.predict()  # these two compile
    pipeline.from_memory()
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    idle: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(a.rounds):
        for name, stage in stages.items():
            pipeline.watch.idle(0.0)
            start = time.perf_counter()
            stage()
            seconds[name].append(time.perf_counter() - start)
            idle[name].append(pipeline.watch.idle(start))
    best = {name: min(times) for name, times in seconds.items()}
    idle_seconds = idle["streamed"][seconds["streamed"].index(best["streamed"])]
    files = pipeline.files
    return {
        "stages": {
            name: {"seconds": seconds[name], "images_per_s": len(files) / best[name]}
            for name in stages
        },
        "wait_share": 1 - best["predict alone"] / best["streamed"],
        "idle_share": idle_seconds / best["streamed"],
        "decode_cores_to_keep_up": best["decode alone, 1 thread"] / best["predict alone"],
        "jpeg_bytes": float(np.mean([len(f) for f in files])),
        "cores": cores,
        "shared_cores": jax.devices()[0].platform == "cpu",
    }


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch", "dtype", "rounds", batch=64)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, help="that decode; the executor's default if none")
    a = parser.parse_args()
    measured, console = measure(a), Console(width=100)
    table = Table("stage", "images/s", "ms an image")
    for name, stage in measured["stages"].items():
        rate = stage["images_per_s"]
        table.add_row(name, f"{rate:.1f}", f"{1000 / rate:.2f}")
    console.print(table)
    competition = " (the same cores decode: mostly that)" if measured["shared_cores"] else ""
    lines = [
        f"{a.images} JPEG files of {WIDTH} x {HEIGHT}, {measured['jpeg_bytes'] / 1e3:.0f} KB each; "
        f"{measured['cores']} cores",
        f"the device waits: {measured['wait_share']:.1%} of the streamed time, by "
        f"1 - predict alone / streamed{competition}",
        f"no prediction under way: {measured['idle_share']:.1%} of the streamed time, measured",
        "cores needed to decode as fast as the network predicts: "
        f"{measured['decode_cores_to_keep_up']:.2f}",
    ]
    for line in lines:
        console.print(line, highlight=False)
    store(a, {**measured, "environment": environment()})


if __name__ == "__main__":
    main()
