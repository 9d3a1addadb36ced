"""Predictions of a trained task, for programs (--out) and for people (--topk).

    python -m experiments.predict --variant vit_b16 --weights PATH --factors PATH \\
        --images X.npy|FOLDER --out logits.npy

X.npy holds float32 images [n, s, s, 3], already normalised. Pictures of a folder (and below it, in
sorted order) are preprocessed as the factor file says. --factors takes our files, folders of PEFT
adapters, hf:owner/name with one of both, and files of the PyTorch code (then with --scale).
Without --out and --topk it prints the five best classes. Exits with 1 if a picture could not be
read: its logits are NaN, the others are there.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.progress import track

from fact_jax.backbone.config import PRECISIONS, get_variant
from fact_jax.cli import arguments
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask, check_fits
from fact_jax.files.load import load_factors
from fact_jax.files.weights import checksum, load_vit
from fact_jax.ranges import SCALE, Range, Whole, check
from fact_jax.serving import inputs, outputs
from fact_jax.serving.predict import Predictor, affordable_batch
from fact_jax.text import count_of, printable_line


def define_flags() -> None:
    """Defines --factors, --images and their options."""
    flags.DEFINE_string("factors", "", "Factor file, PEFT adapter or hf:owner/name.")
    flags.DEFINE_string("images", "", "X.npy, a folder of pictures, or one picture.")
    flags.DEFINE_string("out", "", "Where the logits go: .npy, or .csv with names.")
    flags.DEFINE_integer("topk", None, "Print the k most probable classes of each image.")
    flags.DEFINE_integer(
        "batch_size", None, "Images at a time. Default: 64, fewer where they are large."
    )
    flags.DEFINE_string("class_names", "", "Text file, one class name a line.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
    flags.DEFINE_enum("precision", "default", PRECISIONS, "Of float32 products (docs/numerics.md).")
    arguments.define_factor_flags()


def load_predictor(task: TrainedTask, options: flags.FlagValues) -> Predictor:
    """The predictor of the task and the flags."""
    arguments.say_base(task, options.weights)
    variant = arguments.variant_of(task, options.variant)
    config = get_variant(variant).replace(**task.forward_settings)
    check_fits(task, config, None, any_weights=True)  # before reading the weights
    numerics = {"dtype": options.dtype, "precision": options.precision}
    model, base = load_vit(variant, options.weights, **task.forward_settings, **numerics)
    if not options.any_weights:
        check_fits(task, model.config, checksum(base))
    side = task.metadata.get("image_size") or model.config.image_size
    batch_size = options.batch_size or affordable_batch(config, side, jax.device_count())
    return Predictor(model, base, task, batch_size)


def check_flags(options: flags.FlagValues) -> None:
    """Expands ~, and raises UserError for flags that are wrong whatever the files hold."""
    for name in ("factors", "images", "out", "class_names"):
        setattr(options, name, os.path.expanduser(getattr(options, name)))
    for name in ("factors", "images"):
        if not options[name].value:
            raise UserError(f"--{name} is missing. `{command('predict', '--help')}` lists all.")
    if not os.path.exists(options.images):
        raise UserError(f"--images {options.images} does not exist.")
    if options.out and Path(options.out).suffix not in outputs.OUTPUT_SUFFIXES:
        raise UserError(f"--out {options.out} must end in .npy or .csv.")
    ranges: dict[str, Range] = {"topk": Whole(1), "batch_size": Whole(1), "scale": SCALE}
    for name, allowed in ranges.items():
        if options[name].value is not None:
            check(f"--{name}", options[name].value, allowed)
    if options.out:
        inputs_of = ("images", "factors", "weights", "class_names")
        outputs.check_not_input(options.out, **{name: options[name].value for name in inputs_of})
        outputs.prepare_output(options.out)


def predict(
    predictor: Predictor, path: Path, console: Console
) -> tuple[np.ndarray, list[str], dict[int, str]]:
    """Logits [n, classes], the rows' names, and the rows that have no logits with the reason."""
    trained = predictor.task.metadata
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
        pictures = inputs.Pictures.of(inputs.find_pictures(path), predictor.task, side)
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
    options = flags.FLAGS
    check_flags(options)
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    task = load_factors(options.factors, options.method, options.scale)
    classes = task.metadata.get("class_names") or [str(i) for i in range(task.num_classes)]
    if options.class_names:
        classes = outputs.read_class_names(Path(options.class_names), task.num_classes)
    logits, names, unreadable = predict(load_predictor(task, options), Path(options.images), notes)
    if options.out:
        suffix = Path(options.out).suffix
        write_atomically(options.out, outputs.logits_bytes(suffix, logits, names, classes))
        what = f"{count_of(len(names), 'image')} and {len(classes)} classes"
        notes.print(f"Logits of {what}: {options.out}")
    topk = options.topk or (None if options.out else 5)
    if topk:
        first = "row" if options.images.endswith(".npy") else "file"
        Console().print(outputs.top_table(logits, names, classes, topk, first, task.multi_label))
    if unreadable:
        notes.print(f"No logits for {len(unreadable)} of {len(names)}:")
        for i, reason in sorted(unreadable.items()):
            notes.print(f"  {printable_line(names[i])}: {reason}")
        sys.exit(1)
