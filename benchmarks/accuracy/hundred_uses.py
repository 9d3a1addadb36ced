"""Uses of the factor files of `benchmarks.hundred_tasks` after training."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fact_jax import Bank, FacTTT, Predictor, ViT, load_factors, load_vit, normalise
from fact_jax.algebra.arithmetic import average
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.rounding import round_to
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.data.sources.class_folders import TEST
from fact_jax.files.factors import TrainedTask
from fact_jax.serving.incoming import Source
from fact_jax.tuning.method import Base

BATCH = 64
Members = Mapping[str, Source | Sequence[Source]]


class Examples(NamedTuple):
    """Test pictures of a task: normalised [n, y, x, 3], their labels [n], and the first file."""

    images: np.ndarray
    labels: np.ndarray
    file: Path


class Uses:
    """The network and the tasks' test pictures."""

    def __init__(self, variant: str, tasks: Sequence[str], pictures: Path, image_size: int):
        self.model: ViT
        self.base: Base
        self.model, self.base = load_vit(variant)
        self.tasks = tasks
        self.test = {task: _examples(task, pictures, image_size) for task in tasks}

    def bank(self, members: Members, batch_size: int = BATCH) -> Bank:
        """A bank of these tasks."""
        bank = Bank(self.model, self.base, capacity=len(members), batch_size=batch_size)
        bank.add_all(members)
        return bank

    def accuracies(self, members: Members) -> dict[str, float]:
        """Top-1 accuracy on test in % of tasks or cells, whose factors are given by their names."""
        bank, right = self.bank(members), {}
        for name in members:
            images, labels, _ = self._test_of(name)
            answers = np.stack(bank.logits(images, name)).argmax(axis=-1)
            right[name] = 100 * float((answers == labels).mean())
        return right

    def mixed_batch(self, files: Mapping[str, Path], rounds: int) -> dict[str, Any]:
        """Times of a batch with an image of each task, and of a merged network for each task.

        Returns:
          Seconds of each round, and the largest difference of logits over the largest logit.
        """
        names, count = list(files), len(files)
        images = np.stack([self.test[task].images[0] for task in names])
        bank = self.bank(files, batch_size=count)
        predictors = [Predictor(self.model, self.base, load_factors(files[t]), 1) for t in names]
        seconds: dict[str, list[float]] = {"bank": [], "one_by_one": []}
        for _ in range(rounds + 1):
            start = time.perf_counter()
            mixed = np.stack(bank.logits(images, names))
            middle = time.perf_counter()
            alone = np.concatenate(
                [p.logits(image[None]) for p, image in zip(predictors, images, strict=True)]
            )
            seconds["bank"].append(middle - start)
            seconds["one_by_one"].append(time.perf_counter() - middle)
        error = float(np.abs(mixed - alone).max() / np.abs(alone).max())
        return {**{k: v[1:] for k, v in seconds.items()}, "images": count, "error": error}

    def sums(self, files: Mapping[str, Path]) -> dict[str, float]:
        """Accuracies of tasks of which two share a network: a pair of digits and of garments.

        The increments of digits_A_B and fashion_A_B are added; each task keeps its own head.
        """
        tasks = {task: load_factors(path) for task, path in files.items()}
        merged = {}
        for first in (task for task in tasks if "_digits_" in task):
            pair = first, first.replace("digits", "fashion")
            if pair[1] in tasks:
                added = 2 * self._mean([tasks[task] for task in pair])
                merged |= {task: self._with(added, tasks[task]) for task in pair}
        return self.accuracies(merged)

    def averaged(self, seeds: Mapping[str, Sequence[Path]]) -> dict[str, float]:
        """Accuracy of each task's seeds as one: the mean of increments and of heads."""
        merged = {}
        for task, paths in seeds.items():
            several = [load_factors(path) for path in paths]
            head = {
                name: jnp.mean(jnp.stack([one.head[name] for one in several]), axis=0)
                for name in several[0].head
            }
            merged[task] = self._with(self._mean(several), several[0]._replace(head=head))
        return self.accuracies(merged)

    def _mean(self, tasks: Sequence[TrainedTask]) -> Increments:
        config = self.model.config
        return average([Increments.of(one.method, one.factors, config) for one in tasks])

    def _with(self, increments: Increments, task: TrainedTask) -> TrainedTask:
        """The task with other increments, at a rank that loses nothing of two or three."""
        rank = 3 * task.method.rank  # type: ignore[attr-defined]
        rounded = round_to(FacTTT(rank, 1.0), increments, self.model.config)
        return task._replace(method=rounded.method, factors=rounded.factors)

    def serve(self, folder: Path) -> dict[str, Any]:
        """Asks `fact-jax serve` for a test picture of each file of a folder.

        Returns:
          The number of tasks, of answers like the bank's, and the seconds of all requests.
        """
        files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
        bank, same = self.bank(files), 0
        with _Server(folder) as port:
            start = time.perf_counter()
            answers = {
                name: _classify(port, name, self._test_of(name).file.read_bytes()) for name in files
            }
            seconds = time.perf_counter() - start
        for name, answer in answers.items():
            (expected,) = bank.predict(self._test_of(name).images[:1], name, topk=1)
            same += answer == expected.classes[0]
        return {"tasks": len(files), "same_as_the_bank": same, "seconds": seconds}

    def _test_of(self, name: str) -> Examples:
        """The test pictures of a task, or of a cell of it."""
        return self.test[name.partition("-")[0]]


def _examples(task: str, pictures: Path, image_size: int) -> Examples:
    data = open_task(get_task(task), DataSettings(data_dir=str(pictures), image_size=image_size))
    images, labels = data.load(TEST)
    (first, *_) = data.source.records(TEST, 1)
    return Examples(np.asarray(normalise(jnp.asarray(images), "imagenet")), labels, first.image)


def _classify(port: int, task: str, picture: bytes) -> str:
    url = f"http://127.0.0.1:{port}/v1/tasks/{task}/classify?topk=1"
    with urllib.request.urlopen(urllib.request.Request(url, picture), timeout=60) as answer:
        return json.load(answer)["predictions"][0]["class"]


class _Server:
    """`fact-jax serve` of a folder of factor files, as a context that gives its port."""

    def __init__(self, folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.serve", f"--factors={folder}", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> int:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if address := re.search(r"tasks? at http://127\.0\.0\.1:(\d+)/", line):
                return int(address[1])
        raise SystemExit(f"The server has not started:\n{''.join(said)}")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=120)
