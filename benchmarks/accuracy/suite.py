"""What the tasks of the offline suite ask for: chance, pixels, a random ViT, and tuned ones.

    python -m benchmarks.suite [--tasks offline] [--study benchmarks/results/study.json]

`pixels` is a logistic regression on 32 x 32 pixels, `random` one on the features of a ViT with
random weights, and `probe` one on the features of the bundled `vit_mini`. Each is trained on
train800 with five penalties; the best one on val200 is trained on all 1,000 images and measured on
the test images. Linear probe, full fine-tuning and FacT-TT come from the record of
`benchmarks.study`, whose cells of seed 0 choose a learning rate on val200.

The record is written after every task; rows of other tasks in --out stay. `--again`
keeps what this program measured, and only takes the tuned ones from the study anew.

A task is dropped from the suite if `linear` has 97 % or more, or if all rows are at chance.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from benchmarks.common import option_parser, write_json
from fact_jax import get_variant
from fact_jax.backbone.vit import ViT, features, init_base
from fact_jax.data import DataSettings, TaskData, get_task, open_task
from fact_jax.data.tables.offline import OFFLINE, OFFLINE_GROUPS
from fact_jax.data.tasks import TEST, TRAIN, TRAIN_VAL, VAL
from fact_jax.files.weights import load_vit
from fact_jax.images.normalise import normalise
from fact_jax.sweep.plan import task_names
from fact_jax.sweep.versions import environment

SIDE = 32
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # scikit-learn's C
TUNED = ("linear", "full", "fact_tt")  # arms of the study
FLOORS = ("chance", "pixels", "random", "probe")
CHANCE_MARGIN = 2.0  # points: below this much above chance, a row is at chance
TOO_EASY = 97.0


class Network(NamedTuple):
    """A frozen ViT."""

    model: ViT
    base: dict[str, Any]

    def features(self, images: np.ndarray) -> Float[np.ndarray, "n d"]:
        """Features of images, uint8 [n, 32, 32, 3]."""
        parts = np.array_split(images, max(1, len(images) // 200))
        inputs = (normalise(jnp.asarray(part), "imagenet") for part in parts)
        return np.concatenate([np.asarray(_features(self.model, self.base, x)) for x in inputs])


@jax.jit(static_argnums=0)
def _features(model: ViT, base: dict[str, Any], images: jax.Array) -> jax.Array:
    return features(model, base, images)


def pixels(images: np.ndarray) -> Float[np.ndarray, "n p"]:
    """Pixels of images, uint8 [n, 32, 32, 3], from -1 to 1; one of three equal channels."""
    grey = bool((images == images[..., :1]).all())
    kept = images[..., :1] if grey else images
    return kept.reshape(len(images), -1) / 127.5 - 1


def regression(inputs: dict[str, np.ndarray], labels: dict[str, Int[np.ndarray, " n"]]) -> float:
    """Test accuracy in % of the logistic regression whose penalty is best on val200."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        models = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200, tol=1e-3))
            for c in PENALTIES
        ]
        chosen = max(
            models,
            key=lambda m: m.fit(inputs[TRAIN], labels[TRAIN]).score(inputs[VAL], labels[VAL]),
        )
        chosen.fit(inputs[TRAIN_VAL], labels[TRAIN_VAL])
        return 100 * float(chosen.score(inputs[TEST], labels[TEST]))


def floors(data: TaskData, networks: dict[str, Network]) -> dict[str, float]:
    """Test accuracies in % of what needs no tuning of a ViT."""
    splits = {name: data.load(name) for name in (TRAIN, VAL, TRAIN_VAL, TEST)}
    labels = {name: split.labels for name, split in splits.items()}
    row = {"chance": 100 * float(np.bincount(labels[TEST]).max()) / len(labels[TEST])}
    for name, inputs in {"pixels": pixels, **{n: v.features for n, v in networks.items()}}.items():
        found = {split: inputs(examples.images) for split, examples in splits.items()}
        row[name] = regression(found, labels)
    return row


def tuned(study: dict[str, Any], task: str) -> dict[str, float]:
    """Test accuracies in % of the study's tuned ViTs on a task, seed 0; none that are missing."""
    places = ((c["part"], c["arm"], c["task"], c["seed"]) for c in study["cells"])
    found = dict(zip(places, (c["accuracy"] for c in study["cells"]), strict=True))
    keys = {name: ("main", name, task, 0) for name in TUNED}
    return {name: found[key] for name, key in keys.items() if key in found}


def verdict(row: dict[str, float]) -> str:
    """Why a task must be dropped, in words; empty if it need not, or if it is not known yet."""
    if row.get("linear", 0.0) >= TOO_EASY:
        return f"the linear probe has {row['linear']:.1f} %"
    if not row.keys() >= set(TUNED):
        return ""
    best = max(value for name, value in row.items() if name != "chance")
    return "" if best >= row["chance"] + CHANCE_MARGIN else "everything is at chance"


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/suite.json"))
    parser.add_argument("--tasks", default="offline")
    parser.add_argument("--study", type=Path, default=Path("benchmarks/results/study.json"))
    parser.add_argument("--again", action="store_true", help="only take the tuned rows anew")
    args = parser.parse_args()
    networks = _networks()
    study = json.loads(args.study.read_text()) if args.study.exists() else {"cells": []}
    old = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    rows = {row["task"]: row for row in old}
    for name in task_names(args.tasks):
        task = get_task(name)
        if args.again and name in rows:
            measured, commit = {key: rows[name][key] for key in FLOORS}, rows[name]["commit"]
        else:
            measured = floors(open_task(task, DataSettings(image_size=SIDE)), networks)
            commit = environment()["commit"]
        scores = {**measured, **tuned(study, name)}
        group = next(g for g, names in OFFLINE_GROUPS.items() if name in names)
        sizes = {"classes": task.num_classes, "test": task.test_size}
        row = {"task": name, "group": group, **sizes, **scores, "drop": verdict(scores)}
        rows[name] = {**row, "commit": commit}
        print(f"{name:12}", *(f"{key} {score:.1f}" for key, score in scores.items()), flush=True)
        ordered = [rows[task] for task in OFFLINE if task in rows]
        content = {"command": "python -m benchmarks.suite", "rows": ordered}
        write_json(args.out, {**content, "environment": environment()})


def _networks() -> dict[str, Network]:
    model = ViT(get_variant("vit_mini"))
    return {
        "random": Network(model, init_base(model.config, jax.random.key(1))),
        "probe": Network(*load_vit("vit_mini")),
    }


if __name__ == "__main__":
    main()
