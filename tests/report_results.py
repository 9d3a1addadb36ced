"""Hand-made results for the tests of the report."""

import io
import json

from PIL import Image

from fact_jax.data import get_task


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


def rows_of(method, accuracies, **fields):
    more = {"num_factors": 7, "factor_file_bytes": 2048, "grid_size": 3, "search": None, **fields}
    return [
        {"method": method, "task": task, "seed": seed, "accuracy": accuracy, **more}
        for task, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
