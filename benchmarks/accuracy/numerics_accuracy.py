"""Part 3 of `numerics.py`: accuracy of FacT-TT in each numerics setting.

The quickstart's three tasks and settings (vit_mini, 20 epochs, rates chosen earlier on val200),
trained on train800val200 and measured on test; nothing is chosen here. With DINOv2-S weights also
a short training of it (6 epochs of 256 images of fashion at 98 pixels, one seed, float32), for
what evaluating in other numerics does to a larger net.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.emulation import BFLOAT16, REFERENCE, TF32, TPU_DEFAULT, Setting, emulate
from configs import quickstart
from fact_jax import ViT, features, load_vit
from fact_jax.data import DataSettings, Examples, get_task, open_task
from fact_jax.data.tasks import TEST, TRAIN_VAL
from fact_jax.images.normalise import normalise
from fact_jax.report.averages import stat
from fact_jax.sweep.plan import Cell, make_plan
from fact_jax.training.evaluation import Merged, merged, predict
from fact_jax.training.mesh import make_mesh
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, logits_of, train_set

BATCH, CHUNK = 64, 500  # images of a step, and of a prediction
# Trained in, then evaluated in (setting, are the increments merged?).
EVALUATIONS: dict[Setting, list[tuple[Setting, bool]]] = {
    REFERENCE: [
        (REFERENCE, True),
        (TPU_DEFAULT, True),
        (TF32, True),
        (BFLOAT16, True),
        (BFLOAT16, False),
    ],
    TPU_DEFAULT: [(TPU_DEFAULT, True)],
    BFLOAT16: [(BFLOAT16, True), (BFLOAT16, False), (REFERENCE, True)],
}


class Trainer:
    """One frozen ViT in any setting; programs are compiled once per setting."""

    def __init__(self, config, weights: str | None):
        model, self.base = load_vit(config.variant, weights)
        self.shape, self.normalisation = model.config, config.normalisation
        self.mesh = make_mesh(BATCH)
        self._programs: dict[Any, Any] = {}

    def _model(self, setting: Setting) -> ViT:
        return ViT(self.shape.replace(dtype=setting.dtype, precision=setting.precision))

    def train(self, cell: Cell, setting: Setting, data: Examples) -> dict:
        """The trained pytree of a cell."""
        s, model = cell.settings, self._model(setting)
        step = TrainStep(model, cell.method, self.normalisation, BATCH, self.mesh)
        if setting not in self._programs:
            self._programs[setting] = jax.jit(emulate(step.alone, setting.mode))
        classes = get_task(cell.task).num_classes
        split = train_set(*data, classes)
        state = step.init(cell.seed, classes, 16)
        for e in range(s.epochs):
            rate = learning_rate(
                e, peak=s.learning_rate, epochs=s.epochs, warmup_epochs=s.warmup_epochs
            )
            numbers = (rate, s.weight_decay, 1.0, s.dropout_rate, s.drop_path_rate)
            hyper = Hyper(*map(jnp.float32, numbers))
            trial = Trial(split, hyper, cell.seed)
            state, _ = self._programs[setting](self.base, state, trial, e)
        return jax.block_until_ready(state.trainable)

    def predict(self, cell: Cell, trainable: dict, setting: Setting, merge: bool, images):
        """Classes [n], by the evaluation's own programs, or with both paths apart."""
        model, method = self._model(setting), cell.method

        def merged_path(weights, head, num_classes, images):
            trained = Merged(*weights, head)
            logits = predict(model.config, self.normalisation, trained, num_classes, images)
            return np.argmax(logits, axis=-1)

        def two_path(base, trainable, num_classes, images):
            adaptation = method.adaptation(trainable["factors"], model.config)
            x = normalise(images, self.normalisation)
            x = features(model, base, x, adaptation, merged=False)
            return jnp.argmax(logits_of(trainable["head"], x, num_classes), axis=-1)

        name, classes = (setting, merge), np.int32(get_task(cell.task).num_classes)
        if name not in self._programs:
            program = emulate(merged_path, setting.mode) if merge else two_path
            self._programs[name] = jax.jit(program)
        weights, rest = self.base, trainable
        if merge:
            weights = merged(method, model.config, self.base, trainable["factors"], 1.0)
            rest = trainable["head"]
        pad = -len(images) % CHUNK
        images = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
        chunks = [
            np.asarray(self._programs[name](weights, rest, classes, images[i : i + CHUNK]))
            for i in range(0, len(images), CHUNK)
        ]
        return np.concatenate(chunks)[: len(images) - pad]


def measure(seeds: list[int], dinov2: str, console: Console) -> list[dict[str, Any]]:
    """A row per cell, training setting and evaluation."""
    config = quickstart.get_config()
    config.methods, config.seeds = "fact_tt", tuple(seeds)
    rows = _measure(config, None, EVALUATIONS, console)
    if dinov2:
        config.tasks, config.seeds = "fashion", (seeds[0],)
        config.variant, config.image_size = "dinov2_s14", 98
        config.epochs, config.warmup_epochs = 6, 1
        config.train_limit, config.eval_limit = 256, 500
        rows += _measure(config, dinov2, {REFERENCE: EVALUATIONS[REFERENCE]}, console)
    return rows


def _measure(config, weights, evaluations, console) -> list[dict[str, Any]]:
    trainer, rows, data = Trainer(config, weights), [], {}
    for cell in make_plan(config):
        if cell.task not in data:
            opened = open_task(get_task(cell.task), DataSettings(image_size=config.image_size))
            limits = {TRAIN_VAL: config.train_limit, TEST: config.eval_limit}
            data = {
                cell.task: {split: opened.load(split, n or None) for split, n in limits.items()}
            }
        test, expected = data[cell.task][TEST], None
        for trained, ways in evaluations.items():
            trainable = trainer.train(cell, trained, data[cell.task][TRAIN_VAL])
            for evaluated, merge in ways:
                predicted = trainer.predict(cell, trainable, evaluated, merge, test.images)
                expected = predicted if expected is None else expected  # the first is float32's
                row = {
                    "variant": config.variant,
                    "task": cell.task,
                    "seed": cell.seed,
                    "trained": trained.name,
                    "evaluated": evaluated.name,
                    "merged": merge,
                    "accuracy": 100 * float(np.mean(predicted == test.labels)),
                    "changed": 100 * float(np.mean(predicted != expected)),
                    "num_test": len(test.labels),
                }
                rows.append(row)
        console.print(f"{config.variant} {cell.name}: {rows[-1]['accuracy']:.1f} %")
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per model and setting: accuracies, paired differences to float32, over seeds and tasks.

    Differences pair equal tasks and seeds; their standard error is over all these pairs.
    """
    first = rows[0]["trained"], rows[0]["evaluated"], rows[0]["merged"]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        name = (row["variant"], row["trained"], row["evaluated"], row["merged"])
        groups.setdefault(name, []).append(row)
    out = []
    for (variant, *way), group in groups.items():
        reference = {(r["task"], r["seed"]): r["accuracy"] for r in groups[(variant, *first)]}
        pairs = [r["accuracy"] - reference[r["task"], r["seed"]] for r in group]
        tasks: dict[str, list[float]] = {}
        for r in group:
            tasks.setdefault(r["task"], []).append(r["accuracy"])
        difference, error, _ = stat(pairs)
        out.append(
            {
                "variant": variant,
                **dict(zip(("trained", "evaluated", "merged"), way, strict=True)),
                "accuracy": {task: stat(values)[:2] for task, values in tasks.items()},
                "difference": difference,
                "error": error,
                "changed": statistics.fmean(r["changed"] for r in group),
            }
        )
    return out


def table(rows: list[dict[str, Any]]) -> Table:
    columns = ("model", "trained in", "evaluated in", "accuracy ± s.e.", "difference ± s.e.")
    title = "Accuracy on test, %, of FacT-TT"
    shown = Table(*columns, "predictions changed", title=title, title_justify="left")

    def text(mean: float, error: float | None, sign: str = "") -> str:
        return f"{mean:{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")

    for row in summary(rows):
        accuracy = ", ".join(f"{task} {text(*a)}" for task, a in row["accuracy"].items())
        evaluated = row["evaluated"] + ("" if row["merged"] else ", two paths")
        difference = text(row["difference"], row["error"], "+")
        changed = f"{row['changed']:.2f} %"
        shown.add_row(row["variant"], row["trained"], evaluated, accuracy, difference, changed)
    return shown
