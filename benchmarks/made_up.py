"""A result as a sweep stores it, made up."""

from typing import Any


def result(task: str, method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A finished cell; `more` replaces values, and adds to its `settings` and `data`."""
    about = {"task": task, "method": method, "seed": seed, "protocol": "val", "variant": "vit_b16"}
    about |= {name: more[name] for name in about.keys() & more.keys()}
    settings = {"image_size": 224, "epochs": 3, "weights_sha256": "0" * 64}
    settings |= {"train_limit": 0, "eval_limit": 0, "mock_data": False}
    data = {"task": task, "builder": "", "used_version": "0.0.0", "mapped": False, "mock": False}
    return {
        "cell": f"{task}-{method}-seed{seed}",
        **about,
        "group": "offline",
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
        "seconds": {"train": 100.0, "evaluate": 10.0, "cell": 120.0},
        "environment": {"python": "3.11.7", "device": "1 x cpu"},
        **more,
        "settings": {**about, **settings, **more.get("settings", {})},
        "data": {**data, **more.get("data", {})},
    }
