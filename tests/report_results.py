"""Hand-made results for the tests of the report."""

import io
import itertools
import json

import numpy as np
from PIL import Image

from fact_jax.data import VTAB, get_task
from fact_jax.sweep.result import Result


def result(task="digits", method="lora", seed=0, accuracy=80.0, **more):
    """A cell's result as a sweep stores it; `settings` and `data` are added to the usual ones."""
    settings = {
        "task": task,
        "method": method,
        "seed": seed,
        "variant": "vit_mini",
        "image_size": 32,
        "protocol": "val",
        "epochs": 3,
        "batch_size": 64,
        "train_limit": 0,
        "eval_limit": 0,
        "mock_data": False,
        "weights_sha256": "ab" * 32,
        **more.pop("settings", {}),
    }
    data = {
        "task": task,
        "builder": "offline",
        "requested_version": "1.*.*",
        "used_version": "1.0.0",
        "mapped": False,
        "note": "",
        "mock": False,
        **more.pop("data", {}),
    }
    return {
        "cell": f"{task}-{method}-seed{seed}",
        "method": method,
        "task": task,
        "protocol": "val",
        "variant": "vit_mini",
        "group": get_task(task).group,
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_last_epoch": accuracy,
        "scale": 1.0,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "selection": {},
        "grid_size": 1,
        "search": None,
        "num_factors": 1000,
        "num_head": 1290,
        "factor_file_bytes": 9999,
        "num_train": 1000,
        "num_test": 797,
        "losses": [3.0, 2.0, 1.0],
        "test_accuracies": [None, None, accuracy],
        "epochs_run": 3,
        "seconds": {"train": 1.0, "cell": 2.0},
        "settings": settings,
        "data": data,
        "environment": {"python": "3.11.7", "jax": "0.10.2", "device": "1 x cpu", "commit": "c0"},
        "class_names": None,
        "confusion": None,
        "per_class_accuracy": None,
        "examples": None,
        **more,
    }


def write(folder, results, config=None, failures=()):
    """Writes the results as a work directory."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for one in results:
        (folder / "results" / f"{one['cell']}.json").write_text(json.dumps(one))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for failure in failures:
        (folder / "failures").mkdir(exist_ok=True)
        (folder / "failures" / f"{failure['cell']}.json").write_text(json.dumps(failure))
    return folder


def strip(count, size=8):
    """A JPEG of `count` square tiles."""
    content = io.BytesIO()
    Image.new("RGB", (count * size, size), "teal").save(content, "JPEG")
    return content.getvalue()


# Methods of the made-up study, and the numbers that each trains beside the head.
STUDY = {"linear": 0, "vpt_deep": 678104, "lora": 294912, "fact_tt": 61440, "fact_tk": 86528}
# Its tasks with classes and pictures, whose figures take a second each.
WITH_CLASSES = ("dtd", "svhn", "kitti")


def write_study(folder):
    """Made-up results of two seeds on VTAB's 19 tasks, with all that a report can show."""
    rng, results = np.random.default_rng(0), []
    (folder / "examples").mkdir()
    for task, method, seed in itertools.product(VTAB.values(), STUDY, (0, 1)):
        cell, k = f"synthetic-{task.name}-{method}-seed{seed}", task.num_classes
        true = np.arange(max(500, 2 * k)) % k
        right = rng.random(len(true)) < 0.5 + 0.05 * list(STUDY).index(method)
        counts = np.zeros((k, k), int)
        np.add.at(counts, (true, np.where(right, true, rng.integers(k, size=len(true)))), 1)
        accuracy = 100 * np.trace(counts) / len(true)
        curve = [accuracy * epoch / 10 for epoch in range(1, 11)]
        made = result(
            *(task.name, method, seed, accuracy),
            cell=cell,
            synthetic=True,
            variant="vit_b16",
            num_factors=STUDY[method],
            num_test=len(true),
            losses=[1 / accuracy for accuracy in curve],
            test_accuracies=curve,
            epochs_run=10,
            settings={"variant": "vit_b16", "image_size": 224, "epochs": 10},
        )
        if task.name in WITH_CLASSES:
            picture = f"examples/{cell}.jpg"
            made |= {
                "class_names": [f"class {i}" for i in range(k)],
                "confusion": [[int(t), int(p), int(counts[t, p])] for t, p in np.argwhere(counts)],
                "per_class_accuracy": (100 * counts.diagonal() / counts.sum(1)).tolist(),
                "examples": {"file": picture, "size": 8, "true": [0], "predicted": [1]},
            }
            (folder / picture).write_bytes(strip(1))
        if method != "linear":
            scales = (0.01, 0.1, 1.0, 10.0, 100.0)
            made["selection"] = {f"scale={s:g}": accuracy - abs(np.log10(s)) for s in scales}
            made["grid_size"] = len(scales)
        results.append(made)
    failure = {
        "cell": "synthetic-dtd-ssf-seed0",
        "method": "ssf",
        "task": "dtd",
        "seed": 0,
        "error": "NonFiniteLoss",
        "message": "The loss became nan in epoch 3.",
        "traceback": "Traceback (most recent call last):\n  (made up)\n",
        "command": "python -m experiments.vtab --config=configs/ssf.py --config.tasks=dtd",
    }
    write(folder, results, failures=[failure])


def rows_of(method, accuracies, **fields):
    more = {"num_factors": 7, "factor_file_bytes": 2048, "grid_size": 3, "search": None, **fields}
    return [
        Result(f"{task}-{method}-seed{seed}", method, task, seed, accuracy, **more)
        for task, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
