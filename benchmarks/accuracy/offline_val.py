"""Validation accuracy on the offline suite, for choosing: weights, methods, settings, baselines.

    python -m benchmarks.offline_val [--weights FILE.npz|random] [--tasks digits,fashion]
        --run pixels --run linear:0.01 --run fact_tt:16:1:0.01 --run full:0.001 [--out FILE.json]

A run is `pixels` (logistic regression on the pixels, the best of five penalties), `linear:RATE`,
`fact_tt:RANK:SCALE:RATE`, `fact_tk:RANK:SCALE:RATE`, or `full:RATE` (fine-tuning of everything).
Trains on train800 and measures on val200; the test images are never read. 200 images: an accuracy
of 85 % has a sampling error of 2.5 points.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import option_parser, store
from fact_jax import get_variant
from fact_jax.backbone.vit import ViT, features, init_base
from fact_jax.data import DataSettings, Examples, Task, get_task, open_task
from fact_jax.data.tasks import TRAIN, VAL
from fact_jax.files.weights import load_vit
from fact_jax.images.normalise import normalise
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import make_mesh
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import (
    Hyper,
    Trial,
    init_head,
    logits_of,
    train_set,
)
from fact_jax.tuning import METHODS

VARIANT, BATCH, NORMALISATION = "vit_mini", 64, "imagenet"


def pixels(train: Examples, val: Examples) -> float:
    from sklearn.linear_model import LogisticRegression

    grey = bool((train.images == train.images[..., :1]).all())  # one of three equal channels
    kept = [e.images[..., :1] if grey else e.images for e in (train, val)]
    flat = [images.reshape(len(images), -1) / 255.0 for images in kept]
    models = (LogisticRegression(C=c, max_iter=1000) for c in (1e-3, 1e-2, 0.1, 1, 10))
    return 100 * max(m.fit(flat[0], train.labels).score(flat[1], val.labels) for m in models)


class Trainer:
    """Runs of one ViT; programs are compiled once per method and serve all tasks."""

    def __init__(self, weights: str, args: argparse.Namespace):
        if weights == "random":
            self.model = ViT(get_variant(VARIANT))
            self.base = init_base(self.model.config, jax.random.key(1))
        else:
            self.model, self.base = load_vit(VARIANT, weights or None)
        self.args, self.mesh = args, make_mesh(BATCH)
        self._steps: dict = {}
        # One size for the heads of all tasks, so that each method compiles once.
        self.heads = max(get_task(name).num_classes for name in args.tasks.split(","))

    def _rate(self, epoch: int, peak: float) -> float:
        n = self.args.epochs
        return learning_rate(epoch, peak=peak, epochs=n, warmup_epochs=max(1, n // 10))

    def _accuracy(self, base, trainable, adaptation, val: Examples, classes: int) -> float:
        x = features(
            self.model, base, normalise(jnp.asarray(val.images), NORMALISATION), adaptation
        )
        predicted = logits_of(trainable["head"], x, classes).argmax(-1)
        return 100 * float((np.asarray(predicted) == val.labels).mean())

    def tune(self, name: str, numbers: list[float], task: Task, train, val) -> float:
        rank = {} if name == "linear" else {"rank": int(numbers[0])}
        scale = 1.0 if name == "linear" else numbers[1]
        method = METHODS[name](**rank)
        if method not in self._steps:
            self._steps[method] = TrainStep(self.model, method, NORMALISATION, BATCH, self.mesh)
        step = self._steps[method]
        n = task.num_classes
        data = train_set(train.images, train.labels, n)
        state = step.init(self.args.seed, n, self.heads)
        for e in range(self.args.epochs):
            rates = (self.args.dropout_rate, self.args.drop_path_rate)
            hyper = Hyper(self._rate(e, numbers[-1]), 1e-4, scale, *rates)
            hyper = jax.tree.map(jnp.float32, hyper)
            state, _ = step.alone(self.base, state, Trial(data, hyper, self.args.seed), e)
        adaptation = method.adaptation(state.trainable["factors"], self.model.config, scale)
        return self._accuracy(self.base, state.trainable, adaptation, val, n)

    def full(self, peak: float, task: Task, train, val) -> float:
        """All weights by AdamW in the same schedule and batches; no stochastic depth."""
        n, config = task.num_classes, self.model.config
        head = init_head(jax.random.key(self.args.seed), config.width, n, n)
        params = {"base": self.base, "head": head}
        optimiser = optax.inject_hyperparams(optax.adamw)(peak, weight_decay=1e-4)
        state, rng = optimiser.init(params), np.random.default_rng(self.args.seed)

        @jax.jit
        def step(params, state, images, labels):
            def loss(params):
                x = features(self.model, params["base"], normalise(images, NORMALISATION))
                logits = logits_of(params["head"], x, n)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            # optax's Adam raises a float to an integer power, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimiser.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for e in range(self.args.epochs):
            state.hyperparams["learning_rate"] = jnp.asarray(self._rate(e, peak))
            order = rng.permutation(len(train.images))
            for i in range(len(order) // BATCH):
                rows = order[i * BATCH : (i + 1) * BATCH]
                params, state = step(params, state, train.images[rows], train.labels[rows])
        return self._accuracy(params["base"], params, None, val, n)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--weights", default="", help="a .npz file, 'random', or '' for bundled")
    parser.add_argument("--tasks", default="digits,fashion,location")
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--dropout_rate", type=float, default=0.1)
    parser.add_argument("--drop_path_rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default=None)
    args = parser.parse_args()
    trainer = Trainer(args.weights, args)
    size = trainer.model.config.image_size
    rows = []
    for name in args.tasks.split(","):
        task = get_task(name)
        data = open_task(task, DataSettings(data_dir=args.data_dir, image_size=size))
        train, val = data.load(TRAIN), data.load(VAL)
        for run in args.run:
            kind, *numbers = run.split(":")
            values = [float(v) for v in numbers]
            if kind == "pixels":
                accuracy = pixels(train, val)
            elif kind == "full":
                accuracy = trainer.full(values[0], task, train, val)
            else:
                accuracy = trainer.tune(kind, values, task, train, val)
            rows.append({"task": name, "run": run, "val200": accuracy})
            print(f"{name:10} {run:24} {accuracy:5.1f} %", flush=True)
    store(args, {"rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
