"""`fact_jax.fit`: a folder of pictures, or a CSV file, becomes a trained task by one call."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fact_jax.backbone.config import get_variant
from fact_jax.cli import configs
from fact_jax.cli.dry_run import time_text
from fact_jax.cli.local import Sweep, failures_error
from fact_jax.cli.terminal import Console
from fact_jax.data import TaskData, get_task, open_task
from fact_jax.errors import UserError
from fact_jax.files.load import load_factors
from fact_jax.files.weights import load_vit
from fact_jax.images.preprocessing import preprocessing_of
from fact_jax.ranges import Whole, check
from fact_jax.report.averages import bootstrap, sampling_error, wilson_interval
from fact_jax.report.page import write_report
from fact_jax.serving.fitted import Accuracy, FittedTask, predict_pictures
from fact_jax.serving.predict import Predictor, affordable_batch
from fact_jax.sweep.cost import cell_cost
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.simple import SimpleSettings, simple_settings
from fact_jax.sweep.speed import measure_speed
from fact_jax.text import first_ten
from fact_jax.training.metrics import multi_label_measures

METHOD = "fact_tt"


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The options of a fit; None stands for what suits the pictures and the ViT.

    Attributes:
      variant: the ViT.
      weights: its weights, a file, a folder or hf:owner/name; empty: the published ones.
      epochs: passes over the training pictures.
      image_size: pixels along a side.
      batch_size: training pictures of a step.
      rank: of FacT-TT.
      class_weights: 'balanced' if rare classes are to count as much as frequent ones.
      select_by: the measure on validation pictures that settings are chosen by; empty: accuracy,
        or mAP where pictures have several labels.
      skip_damaged: leave out pictures that cannot be decoded.
      seed: of the random numbers.
    """

    variant: str = "vit_mini"
    weights: str = ""
    epochs: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    rank: int = 16
    class_weights: str = ""
    select_by: str = ""
    skip_damaged: bool = False
    seed: int = 0


def fit(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str] = "fit",
    *,
    console: Console | None = None,
    **options: Any,
) -> FittedTask:
    """Trains FacT-TT on one's own pictures, and measures it on a part that it kept for that.

    A learning rate is chosen on validation pictures among three; then all but the test pictures are
    trained on. Called again with the same arguments, it goes on where it was stopped.

    Args:
      images: a folder with a subfolder of pictures for each class (and maybe train/, val/ and test/
        above them), or a CSV file with the columns path and label, or path and labels.
      out: the folder for the factor file, the result and the report.
      console: where progress is shown; None: the terminal.
      **options: see `FitOptions`.

    Returns:
      The task, which predicts pictures, with its accuracy and its files.

    Raises:
      UserError: there are no such pictures, or too few, or an option makes no sense.
    """
    return run_fit(Path(images), Path(out), console or Console(), options).task


class Tested(NamedTuple):
    """The test pictures: their names, labels [n] or [n, c], and logits [n, c]."""

    names: list[str]
    labels: np.ndarray
    logits: np.ndarray


class Fit(NamedTuple):
    """A trained task, the result that a sweep stored of it, and its test pictures."""

    task: FittedTask
    result: Result
    tested: Tested


def run_fit(images: Path, out: Path, console: Console, options: dict[str, Any]) -> Fit:
    """Does the work of `fit`, and returns all that there is to show."""
    chosen, out = _options(options), out.expanduser()
    data_dir, task = _place(images.expanduser(), out)
    config = _config(chosen, data_dir, task)
    data = open_task(get_task(task), read_settings(config).data)
    simple = _settle(config, chosen, data)
    _introduce(console, config, data, simple)
    failures: list[Failure] = []
    sweep = Sweep(config, os.fspath(out), console, rerun=lambda cell: "", brief=True)
    results = sweep.run(failures)  # the same call goes on; it has no --cells
    if failures:
        raise failures_error(failures, os.fspath(out))
    return _fitted(config, results[0], data, out, console)


def _options(options: dict[str, Any]) -> FitOptions:
    names = [field.name for field in dataclasses.fields(FitOptions)]
    if unknown := sorted(options.keys() - set(names)):
        raise UserError(f"fit has no option {unknown[0]!r}; it has {', '.join(names)}.")
    chosen = FitOptions(**options)
    for name in ("epochs", "image_size", "batch_size"):
        if (value := getattr(chosen, name)) is not None:
            check(name, value, Whole(1))
    return chosen


def _place(images: Path, out: Path) -> tuple[Path, str]:
    """The data directory and the task's name of a folder or a CSV file.

    A name that cannot be part of a file's name gets a link in `out`.
    """
    images = images.resolve()
    is_csv = images.suffix.lower() == ".csv"
    if not (images.is_file() if is_csv else images.is_dir()):
        raise UserError(
            f"--images {images} is neither a folder nor a .csv file. Give a folder with a "
            "subfolder of pictures for each class, or a CSV file with the header path,label."
        )
    if not is_csv and out.resolve().is_relative_to(images):
        raise UserError(
            f"--out {out} lies in the folder of the pictures, {images}, where it would be taken "
            "for a class. Give a folder elsewhere."
        )
    name = images.stem if is_csv else images.name
    kind = "csv" if is_csv else "folder"
    sound = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "pictures"
    sound = re.sub(r"_(\d+)shot$", r"_\1_shot", sound)  # which would be a few-shot task
    if sound == name and (not is_csv or images.name == f"{name}.csv"):
        return images.parent, f"{kind}_{name}"
    if is_csv:  # its paths begin at its folder
        raise UserError(
            f"The name of {images} has other characters than letters, digits, '_' and '-', or "
            f"does not end in .csv. Rename it, for instance to {sound}.csv."
        )
    link = out / "pictures" / sound
    link.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(link):
        link.symlink_to(images, target_is_directory=True)
    if link.resolve() != images:
        raise UserError(
            f"--out {out} is of other pictures, those in {link.resolve()}. Give another --out."
        )
    return link.parent, f"{kind}_{sound}"


def _config(options: FitOptions, data_dir: Path, task: str) -> ConfigDict:
    """The sweep's config, without what depends on the number of pictures."""
    config = configs.load("quickstart")
    for name in config.methods.split(","):
        del config[name]
    size = options.image_size or preprocessing_of(options.variant).image_size
    patch_size = get_variant(options.variant).patch_size
    config.update(
        {
            "tasks": task,
            "methods": METHOD,
            "seeds": (options.seed,),
            "variant": options.variant,
            "weights": options.weights,
            "image_size": -(-size // patch_size) * patch_size if not options.image_size else size,
            "normalisation": preprocessing_of(options.variant).normalisation,
            "data_dir": os.fspath(data_dir),
            "skip_damaged": options.skip_damaged,
            "class_weights": options.class_weights,
            "select_by": options.select_by,
        }
    )
    config[METHOD] = ConfigDict({"rank": options.rank})
    make_plan(config)  # refuses settings that make no sense before the pictures are looked at
    return config


def _settle(config: ConfigDict, options: FitOptions, data: TaskData) -> SimpleSettings:
    """Adds to the config what depends on the number of pictures."""
    num_train = data.size(data.task.train_split(options.seed, final=True))
    simple = simple_settings(num_train)
    simple = simple._replace(
        batch_size=options.batch_size or simple.batch_size, epochs=options.epochs or simple.epochs
    )
    config.batch_size, config.epochs = simple.batch_size, simple.epochs
    # Every batch of an evaluation is filled up to this number.
    most = max(data.size("val"), data.size("test"), 8)
    config.eval_batch_size = min(config.eval_batch_size, 1 << (most - 1).bit_length())
    config[METHOD].update({"learning_rates": simple.learning_rates, "scales": simple.scales})
    return simple


def _times(epochs: int) -> str:
    return f"{epochs} epoch{'s' * (epochs != 1)}"


def _introduce(
    console: Console, config: ConfigDict, data: TaskData, simple: SimpleSettings
) -> None:
    """Says what was found and what will be done."""
    sizes = [f"{data.size(split)} {what}" for split, what in _SPLITS.items()]
    names = data.class_names or []
    shown = f"{', '.join(names[:8])}{' and more' * (len(names) > 8)}"
    several = ", any number of them a picture" if data.task.multi_label else ""
    what = "labels" if data.task.multi_label else "classes"
    console.print(
        f"{data.task.num_classes} {what} ({shown}){several}; {', '.join(sizes)} pictures.",
        soft_wrap=True,
    )
    if "drew" in (note := data.provenance.get("note", "")):
        console.print(f"Parts: {note.partition('; ')[2]}.", soft_wrap=True)
    console.print(
        f"FacT-TT of rank {config[METHOD].rank} on {config.variant} at {config.image_size} pixels "
        f"({config.normalisation}): {_times(simple.epochs)} in batches of {simple.batch_size} for "
        f"each of {len(simple.learning_rates)} learning rates, then once more with the best.",
        soft_wrap=True,
    )
    if config.variant != "vit_mini":
        (cell,) = make_plan(config)
        vit = get_variant(config.variant).replace(image_size=config.image_size)
        speed = measure_speed(vit, config.batch_size)
        flops = cell_cost(cell, vit, data.task).flops
        seconds = flops / (speed.flops_per_second * speed.devices)
        console.print(
            f"About {time_text(seconds)} on this machine, compiling not counted. Fewer --epochs or "
            "a smaller --image_size shorten it.",
            soft_wrap=True,
        )
    else:
        console.print(
            "vit_mini is the small ViT that comes with fact-jax; it sees 32 x 32 pixels. For "
            "photographs take a larger one, such as --variant dinov2_s14 --weights "
            "hf:facebook/dinov2-small.",
            soft_wrap=True,
        )


_SPLITS = {"train": "training", "val": "validation", "test": "test"}


def _fitted(config: ConfigDict, result: Result, data: TaskData, out: Path, console: Console) -> Fit:
    """The trained task of a finished cell and its report, tried on the test pictures once more."""
    task = load_factors(out / "factors" / f"{result.cell}.safetensors")
    model, base = load_vit(config.variant, config.weights or None, **task.forward_settings)
    batch_size = affordable_batch(model.config, config.image_size, jax.device_count())
    report = Path(os.fspath(write_report([os.fspath(out)])))
    predictor = Predictor(model, base, task, batch_size)
    tested = _tested(predictor, data)
    if absent := _absent(tested, data):
        console.print(f"No test picture is of {absent}: nothing is known of it.", soft_wrap=True)
    accuracy = _accuracy(result, tested)
    return Fit(FittedTask(predictor, accuracy, report / "index.html"), result, tested)


def _absent(tested: Tested, data: TaskData) -> str:
    """The classes without a test picture, in words."""
    labels = tested.labels
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=1)
    counts = np.pad(counts, (0, data.task.num_classes - len(counts)))
    names = [(data.class_names or [])[i] for i in np.flatnonzero(counts == 0)]
    return first_ten(names) if names else ""


def _tested(predictor: Predictor, data: TaskData) -> Tested:
    """Predicts the test pictures, prepared as the factor file says."""
    records = list(data.view.records("test", data.size("test")))
    labels = [batch.labels for batch in data.stream("test", predictor.batch_size)]
    paths = [Path(record.image) for record in records if not isinstance(record.image, bytes)]
    logits = predict_pictures(predictor, paths)
    return Tested([record.name for record in records], np.concatenate(labels), logits)


def _accuracy(result: Result, tested: Tested) -> Accuracy:
    number = len(tested.names)
    if tested.labels.ndim == 1:
        share = result.accuracy / 100
        low, high = wilson_interval(share, number)
        interval = (100 * low, 100 * high)
        error = 100 * sampling_error(share, number)
        return Accuracy("accuracy", result.accuracy, error, interval, number)

    def measure(rows: np.ndarray) -> float | None:
        return multi_label_measures(tested.labels[rows], tested.logits[rows])["map"]

    return Accuracy("map", result.accuracy, *bootstrap(measure, number), number)
