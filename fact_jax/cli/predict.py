"""Predictions of a trained task, for programs (--out) and for people (--topk).

    python -m experiments.predict --variant vit_b16 --weights PATH --factors PATH \\
        --images X.npy|FOLDER --out logits.npy

X.npy holds float32 images [n, s, s, 3], already normalised. Pictures of a folder (and below it, in
sorted order) are preprocessed as the factor file says. --factors takes our files and those of the
PyTorch code (then with --scale). Without --out and --topk it prints the five best classes. Exits
with 1 if a picture could not be read: its logits are NaN, the others are there.
"""

import os
import sys
from pathlib import Path

import numpy as np
from absl import flags
from rich.progress import track

from fact_jax.backbone.config import PRECISIONS, get_variant
from fact_jax.cli import process
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask, check_fits
from fact_jax.files.load import load_factors
from fact_jax.files.weights import checksum, load_vit
from fact_jax.ranges import SCALE, Range, Whole, check
from fact_jax.serving import inputs, outputs
from fact_jax.serving.predict import Predictor
from fact_jax.text import printable_line

_VARIANT = flags.DEFINE_string("variant", None, "The ViT; by default the factor file's.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Its weights, a file, folder or hf:owner/name; by default the published ones."
)
_FACTORS = flags.DEFINE_string("factors", "", "Factor file, ours or the PyTorch code's .pt.")
_IMAGES = flags.DEFINE_string("images", "", "X.npy, a folder of pictures, or one picture.")
_OUT = flags.DEFINE_string("out", "", "Where the logits go: .npy, or .csv with names.")
_TOPK = flags.DEFINE_integer("topk", None, "Print the k most probable classes of each image.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at a time.")
_METHOD = flags.DEFINE_enum("method", None, ["tt", "tk"], "Method of a .pt file.")
_SCALE = flags.DEFINE_float("scale", None, "Scale of a .pt file, which does not say it.")
_CLASS_NAMES = flags.DEFINE_string("class_names", "", "Text file, one class name a line.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_PRECISION = flags.DEFINE_enum(
    "precision", "default", PRECISIONS, "Of float32 products (docs/numerics.md)."
)
_ANY_WEIGHTS = flags.DEFINE_bool("any_weights", False, "Accept weights it was not trained on.")


def load_predictor(task: TrainedTask) -> Predictor:
    """The predictor of the task and the flags."""
    variant = _VARIANT.value or task.metadata.get("variant")
    if not variant:
        raise UserError(f"{task.path} does not say its ViT: give --variant, such as vit_b16.")
    config = get_variant(variant).replace(**task.forward_settings)
    check_fits(task, config, None, any_weights=True)  # before reading the weights
    model, base = load_vit(
        variant,
        _WEIGHTS.value,
        **task.forward_settings,
        dtype=_DTYPE.value,
        precision=_PRECISION.value,
    )
    if not _ANY_WEIGHTS.value:
        check_fits(task, model.config, checksum(base))
    return Predictor(model, base, task, _BATCH_SIZE.value)


def check_flags() -> None:
    """UserError for what can be known to be wrong before anything is read; ~ is expanded."""
    for flag in (_FACTORS, _IMAGES, _OUT, _CLASS_NAMES):
        flags.FLAGS[flag.name].value = os.path.expanduser(flag.value)
    for name in ("factors", "images"):
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name} is missing. `{command('predict', '--help')}` lists all.")
    if not Path(_IMAGES.value).exists():
        raise UserError(f"--images {_IMAGES.value} does not exist.")
    if _OUT.value and Path(_OUT.value).suffix not in outputs.OUTPUT_SUFFIXES:
        raise UserError(f"--out {_OUT.value} must end in .npy or .csv.")
    ranges: dict[str, Range] = {"topk": Whole(1), "batch_size": Whole(1), "scale": SCALE}
    for name, allowed in ranges.items():
        if flags.FLAGS[name].value is not None:
            check(f"--{name}", flags.FLAGS[name].value, allowed)
    if _OUT.value:
        outputs.check_not_input(
            _OUT.value,
            images=_IMAGES.value,
            factors=_FACTORS.value,
            weights=_WEIGHTS.value,
            class_names=_CLASS_NAMES.value,
        )
        outputs.prepare_output(_OUT.value)


def predict(predictor: Predictor, console: Console) -> tuple[np.ndarray, list[str], dict[int, str]]:
    """Logits [n, classes], the rows' names, and the rows that have no logits with the reason."""
    path, trained = Path(_IMAGES.value), predictor.task.metadata
    config, batch_size = predictor.model.config, predictor.batch_size
    side = trained.get("image_size") or config.image_size
    if path.suffix == ".npy":
        images = inputs.read_npy(path, config.patch_size)
        if images.shape[1] != side:
            console.print(f"Images of {images.shape[1]} pixels; the factors were made at {side}.")
        if (largest := np.abs(images[:64]).max()) > 20:
            console.print(f"Warning: values up to {largest:g}: are these images normalised?")
        names, unreadable = [str(i) for i in range(len(images))], dict[int, str]()
        starts = range(0, len(images), batch_size)
        batches = iter([images[i : i + batch_size] for i in starts])  # views, not read yet
    else:
        inputs.check_side(
            f"Factor file {predictor.task.path} asks for images of", side, config.patch_size
        )
        pictures = inputs.Pictures(
            inputs.find_pictures(path),
            side,
            trained.get("normalisation", "imagenet"),
            trained.get("jpeg_quality"),
        )
        console.print(
            f"{len(pictures.paths)} pictures, resized to {side} x {side} pixels, normalisation "
            f"{pictures.normalisation!r}"
            + (f", after JPEG of quality {q}." if (q := pictures.jpeg_quality) else ".")
        )
        root = path if path.is_dir() else path.parent
        names = [str(p.relative_to(root)) for p in pictures.paths]
        unreadable, batches = pictures.unreadable, pictures.batches(batch_size)
    steps = -(-len(names) // batch_size)
    quiet = not console.is_terminal
    stream = predictor.stream(batches)
    rows = track(stream, "predicting", steps, console=console, transient=True, disable=quiet)
    logits = np.concatenate(list(rows))
    logits[list(unreadable)] = np.nan
    for i in np.flatnonzero(~np.isfinite(logits).all(axis=1)):
        unreadable.setdefault(int(i), "its logits are not finite: look at its numbers")
    return logits, names, unreadable


def main() -> None:
    check_flags()
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    task = load_factors(_FACTORS.value, _METHOD.value, _SCALE.value)
    classes = task.metadata.get("class_names") or [str(i) for i in range(task.num_classes)]
    if _CLASS_NAMES.value:
        classes = outputs.read_class_names(Path(_CLASS_NAMES.value), task.num_classes)
    logits, names, unreadable = predict(load_predictor(task), notes)
    if _OUT.value:
        suffix = Path(_OUT.value).suffix
        write_atomically(_OUT.value, outputs.logits_bytes(suffix, logits, names, classes))
        notes.print(f"Logits of {len(names)} images and {len(classes)} classes: {_OUT.value}")
    topk = _TOPK.value or (None if _OUT.value else 5)
    if topk:
        first = "row" if _IMAGES.value.endswith(".npy") else "file"
        Console().print(outputs.top_table(logits, names, classes, topk, first))
    if unreadable:
        notes.print(f"No logits for {len(unreadable)} of {len(names)}:")
        for i, reason in sorted(unreadable.items()):
            notes.print(f"  {printable_line(names[i])}: {reason}")
        sys.exit(1)


def start() -> None:
    """Runs the command with the arguments of this process."""
    process.run(main, __doc__)
