"""Numerical effect of the compute type and of the precision of matrix products.

    python -m benchmarks.numerics [--dinov2 FILE.safetensors] [--out FILE.json]

1. errors: features and factor gradients in each setting against float32 with 'highest'.
2. increments: how much of a small increment's effect is left where weights are rounded.
3. accuracy (`numerics_accuracy.py`): FacT-TT trained and evaluated in each setting on the tasks of
   the quickstart.

On a CPU every float32 product is a true float32 product, so the defaults of a TPU (one pass of
bfloat16 numbers), its 'high' (three) and of a GPU (TensorFloat-32) are emulated there by rounding
the operands of every product, forward and backward (`emulation.py`). On other devices
only TensorFloat-32 is emulated, next to what the device does. Without --dinov2 the rows of that
model are left out.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from rich.console import Console
from rich.table import Table

import fact_jax.data.offline
from benchmarks.accuracy import numerics_accuracy
from benchmarks.accuracy.emulation import (
    BFLOAT16,
    REFERENCE,
    TF32,
    TPU_DEFAULT,
    TPU_HIGH,
    Setting,
    emulate,
)
from benchmarks.common import option_parser, write_json
from fact_jax import FacTTT, ViT, features, get_variant, load_vit, merge
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.vit import init_base
from fact_jax.images.normalise import normalise
from fact_jax.sweep.versions import environment
from fact_jax.training.trial import init_head, logits_of

METHOD, CLASSES = FacTTT(rank=16), 10
RATIOS = (1.0, 2.0**-4, 2.0**-8, 2.0**-12)  # of the increment's size to the weight's


class Case(NamedTuple):
    """A frozen ViT and normalised pictures of Fashion-MNIST, float32 [b, y, x, 3]."""

    name: str
    model: ViT
    base: dict
    images: jax.Array
    labels: jax.Array


def fashion(count: int, size: int) -> tuple[jax.Array, jax.Array]:
    """The first test pictures, read without TFDS."""
    with np.load(Path(fact_jax.data.offline.__file__).with_name("fashion.npz")) as arrays:
        pictures, labels = arrays["images"][1000 : 1000 + count], arrays["labels"][1000:]
    resized = [
        np.asarray(Image.fromarray(p).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        for p in pictures
    ]
    return normalise(jnp.asarray(np.stack(resized)), "imagenet"), jnp.asarray(labels[:count])


def cases(dinov2: str) -> list[Case]:
    chosen = [Case("vit_mini, 32 px", *load_vit("vit_mini"), *fashion(16, 32))]
    if dinov2:
        model, base = load_vit("dinov2_s14", dinov2)
        chosen += [
            Case(f"dinov2_s14, {size} px", model, base, *fashion(count, size))
            for size, count in ((98, 16), (224, 4))
        ]
    model = ViT(get_variant("vit_b16"))
    base = init_base(model.config, jax.random.key(0))
    return [*chosen, Case("vit_b16, random weights, 224 px", model, base, *fashion(2, 224))]


def trainable_for(case: Case, ratio: float) -> dict:
    """Random factors whose increments have `ratio` times the kernels' root mean square; a head."""
    config = case.model.config
    factors = METHOD.init(jax.random.key(1), config)
    factors["V"] = jax.random.normal(jax.random.key(2), factors["V"].shape)
    factors["V"] *= ratio / increment_ratio(case.base, METHOD.adaptation(factors, config))
    return {
        "factors": factors,
        "head": init_head(jax.random.key(3), config.width, CLASSES, CLASSES),
    }


def increment_ratio(base: dict, adaptation) -> float:
    """Root mean square of all increments over that of the kernels that they change."""
    blocks, squares = base["Transformer"]["encoderblock"], np.zeros(2)
    for site, (module, layer) in SITES.items():
        pair = (adaptation.site(site)[0].increment(), blocks[module][layer]["kernel"])
        squares += [float(jnp.sum(x**2)) for x in pair]
    return float(np.sqrt(squares[0] / squares[1]))


def outputs(case: Case, setting: Setting):
    """Jitted (base, trainable, images, labels) -> features of both paths, factor gradients.

    The gradients are those of a training step: two paths, dropout and stochastic depth at 0.1 with
    one key, so that all settings drop the same.
    """
    config = case.model.config.replace(dtype=setting.dtype, precision=setting.precision)
    model, key = ViT(config), jax.random.key(4)

    def run(base, trainable, images, labels):
        adaptation = METHOD.adaptation(trainable["factors"], config)
        merged = features(model, merge(base, adaptation), images)
        two_path = features(model, base, images, adaptation, merged=False)

        def loss(factors):
            x = features(
                model,
                base,
                images,
                METHOD.adaptation(factors, config),
                key=key,
                dropout_rate=jnp.float32(0.1),
                drop_path_rate=jnp.float32(0.1),
            )
            logits = logits_of(trainable["head"], x, CLASSES)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradients = jax.grad(loss)(trainable["factors"])
        return {"merged": merged, "two_path": two_path, "gradients": gradients}

    return jax.jit(emulate(run, setting.mode))


def relative_error(actual, expected) -> float:
    """Norm of the difference of two pytrees over the norm of the second, in float64."""
    a, b = (
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
        for tree in (actual, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure_errors(case: Case, settings: list[Setting]) -> list[dict[str, Any]]:
    """A row per setting; the factors change the weights by a tenth of their size."""
    arguments = (case.base, trainable_for(case, 0.1), case.images, case.labels)
    expected = outputs(case, REFERENCE)(*arguments)
    rows = []
    for setting in settings:
        actual = outputs(case, setting)(*arguments)
        rows.append(
            {
                "case": case.name,
                "setting": setting.name,
                "features_merged": relative_error(actual["merged"], expected["merged"]),
                "features_two_path": relative_error(actual["two_path"], expected["merged"]),
                "gradients": relative_error(actual["gradients"], expected["gradients"]),
            }
        )
    return rows


def measure_increments(case: Case) -> list[dict[str, Any]]:
    """Measures how much of an increment's effect a setting keeps, and the noise it adds.

    The change of the features, each setting's own, is compared with float32's: `kept` is its
    component along the latter (1: all of it), `noise` the size of the rest.
    """

    def changes(setting: Setting):
        model = ViT(case.model.config.replace(dtype=setting.dtype, precision=setting.precision))

        def run(base, factors):
            adaptation = METHOD.adaptation(factors, model.config)
            none = jax.tree.map(jnp.zeros_like, adaptation)

            def two_path(a):
                return features(model, base, case.images, a, merged=False)

            def merged(a):
                return features(model, merge(base, a), case.images)

            paths = {"merged": merged, "two_path": two_path}
            return {name: path(adaptation) - path(none) for name, path in paths.items()}

        return jax.jit(emulate(run, setting.mode))

    exact, rows = changes(REFERENCE), []
    for setting in (TPU_DEFAULT, BFLOAT16):
        program = changes(setting)
        for ratio in RATIOS:
            factors = trainable_for(case, ratio)["factors"]
            expected = np.asarray(exact(case.base, factors)["merged"], np.float64).ravel()
            row: dict[str, Any] = {"case": case.name, "setting": setting.name, "ratio": ratio}
            for path, change in program(case.base, factors).items():
                actual = np.asarray(change, np.float64).ravel()
                kept = actual @ expected / (expected @ expected)
                noise = np.linalg.norm(actual - kept * expected) / np.linalg.norm(expected)
                row |= {f"{path}_kept": float(kept), f"{path}_noise": float(noise)}
            rows.append(row)
    return rows


def error_table(rows: list[dict]) -> Table:
    columns = ("model", "setting", "features, merged", "features, two paths", "gradients")
    title = "Relative error against float32 with 'highest'"
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        numbers = (row[k] for k in ("features_merged", "features_two_path", "gradients"))
        table.add_row(row["case"], row["setting"], *(f"{x:.1e}" for x in numbers))
    return table


def increment_table(rows: list[dict]) -> Table:
    columns = ("model", "setting", "increment / weight", "merged", "two paths")
    title = "An increment's effect on the features: kept, and noise"
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        size = f"1/{1 / row['ratio']:.0f}" if row["ratio"] < 1 else "1"
        cells = (f"{row[f'{p}_kept']:.2f}, {row[f'{p}_noise']:.2g}" for p in ("merged", "two_path"))
        table.add_row(row["case"], row["setting"], size, *cells)
    return table


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--dinov2", default="", help="weights of dinov2_s14 (safetensors)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default="errors,increments,accuracy")
    args = parser.parse_args()
    started, console = time.time(), Console(width=140)
    parts = args.parts.split(",")
    on_cpu = jax.default_backend() == "cpu"
    device = [Setting(f"float32, {p} (this device)", precision=p) for p in ("default", "high")]
    settings = [*device, *([TPU_DEFAULT, TPU_HIGH] if on_cpu else []), TF32, BFLOAT16]
    record: dict[str, Any] = {
        "errors": [],
        "increments": [],
        "accuracy": None,
        "settings": {"method": "fact_tt, rank 16", "dinov2": bool(args.dinov2)},
        "environment": environment(),
    }
    if not args.dinov2:
        console.print("No --dinov2 file: its rows are left out.")
    for case in cases(args.dinov2):
        if "errors" in parts:
            record["errors"] += measure_errors(case, settings)
        if "increments" in parts and "224" not in case.name:
            record["increments"] += measure_increments(case)
    console.print(error_table(record["errors"]), increment_table(record["increments"]))
    if "accuracy" in parts:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        record["accuracy"] = numerics_accuracy.measure(seeds, args.dinov2, console)
        console.print(numerics_accuracy.table(record["accuracy"]))
    record["seconds"] = time.time() - started
    console.print(f"{record['seconds']:.0f} s on {record['environment']['device']}.")
    if args.out:
        write_json(args.out, record)


if __name__ == "__main__":
    main()
