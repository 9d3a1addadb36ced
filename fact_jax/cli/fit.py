"""A classifier of your own pictures, by one command.

    fact-jax fit --images PICTURES --out flowers
    fact-jax predict --factors flowers/factors/*.safetensors --images NEW.jpg

PICTURES is a folder with a subfolder for each class, flowers/daisy/1.jpg, or a CSV file with the
header path,label (or path,labels with | between several labels of a picture). A part of the
pictures is kept for the test, another for choosing the learning rate, unless train/, val/ and test/
are there, or a column split. Prints the accuracy with its sampling error, which classes are taken
for which, and the pictures that it gets wrong; writes the factor file and a report. Run again, it
goes on where it was stopped.
"""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from rich.table import Table

from fact_jax.backbone.config import VARIANTS
from fact_jax.cli import stopping
from fact_jax.cli.fitting import Fit, FitOptions, run_fit
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.files.atomic import write_atomically
from fact_jax.report.terminal import print_table
from fact_jax.serving.fitted import FittedTask
from fact_jax.sweep.runner import LESS_MEMORY
from fact_jax.sweep.settings import MEASURES
from fact_jax.text import csv_field, printable_line
from fact_jax.training.metrics import probabilities

_SHOWN = 10  # wrong pictures in the terminal
_MOST_CLASSES = 20  # of a confusion table in the terminal


class WrongPicture(NamedTuple):
    """A test picture that the task gets wrong.

    Attributes:
      path: below the folder of the pictures, or as in the CSV file.
      true: its class, or all its labels.
      predicted: the class, or all the labels, that were predicted.
      probability: of the predicted class, or of the likeliest label.
    """

    path: str
    true: str
    predicted: str
    probability: float


def define_flags() -> None:
    """Defines --images, --out and the options of a fit."""
    default = FitOptions()
    flags.DEFINE_string("images", "", "Folder of pictures, or CSV file.")
    flags.DEFINE_string("out", "fit", "Folder for the factor file and the report.")
    flags.DEFINE_enum("variant", default.variant, list(VARIANTS), "The ViT.")
    flags.DEFINE_string(
        "weights", "", "Its weights, a file, folder or hf:owner/name; by default the published."
    )
    flags.DEFINE_integer("epochs", None, "Passes over the pictures. Default: by their number.")
    flags.DEFINE_integer("image_size", None, "Pixels along a side. Default: the ViT's own.")
    flags.DEFINE_integer("batch_size", None, "Pictures of a step. Default: by their number.")
    flags.DEFINE_integer("rank", default.rank, "Rank of FacT-TT: how many numbers it trains.")
    flags.DEFINE_enum(
        "class_weights", "", ["", "balanced"], "balanced: rare classes count as much as others."
    )
    flags.DEFINE_enum(
        "select_by", "", ["", *MEASURES], "Measure that the learning rate is chosen by."
    )
    flags.DEFINE_bool("skip_damaged", False, "Leave out pictures that cannot be decoded.")
    flags.DEFINE_integer("seed", default.seed, "Seed of the random numbers.")


def wrong_pictures(fit: Fit) -> list[WrongPicture]:
    """The test pictures that the task gets wrong, the surest mistakes first."""
    classes, several = fit.task.classes, fit.tested.labels.ndim == 2
    p = probabilities(fit.tested.logits, several)
    wrong = []
    for name, label, of_picture in zip(fit.tested.names, fit.tested.labels, p, strict=True):
        likeliest = int(np.argmax(of_picture))
        true = set(np.flatnonzero(label).tolist()) if several else {int(label)}
        predicted = set(np.flatnonzero(of_picture > 0.5).tolist()) if several else {likeliest}
        if true != predicted:
            was, now = (", ".join(classes[i] for i in sorted(s)) for s in (true, predicted))
            wrong.append(WrongPicture(name, was, now, float(of_picture[likeliest])))
    return sorted(wrong, key=lambda w: -w.probability)


def wrong_csv(wrong: list[WrongPicture]) -> bytes:
    """A CSV file of all wrong pictures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(WrongPicture._fields)
    for path, true, predicted, probability in wrong:
        names = (csv_field(printable_line(name)) for name in (path, true, predicted))
        writer.writerow([*names, f"{probability:.4f}"])
    return text.getvalue().encode()


def confusion_table(task: FittedTask, counts: list[tuple[int, int, int]]) -> Table:
    """A row for each true class, with the number of pictures taken for each class.

    Args:
      task: what was fitted.
      counts: true class, predicted class and number of test pictures.
    """
    table = Table("true \\ predicted", *task.classes, title="Test pictures", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    numbers = {(true, predicted): number for true, predicted, number in counts}
    for i, name in enumerate(task.classes):
        row = [numbers.get((i, j), 0) for j in range(len(task.classes))]
        table.add_row(name, *(str(number) if number else "·" for number in row))
    return table


def _show(console: Console, fit: Fit, wrong: list[WrongPicture], out: Path) -> None:
    """Prints what came out, and what to do next."""
    task, counts = fit.task, fit.result.confusion or []
    what = "mAP" if task.accuracy.measure == "map" else "Accuracy"
    console.print(f"{what}: {task.accuracy}", soft_wrap=True)
    if counts and len(task.classes) <= _MOST_CLASSES:
        print_table(console, confusion_table(task, counts))
    if wrong:
        number = task.accuracy.num_images
        console.print(f"Wrong on {len(wrong)} of {number} test pictures, the surest first:")
        table = Table("picture", "true", "predicted", "probability")
        for path, true, predicted, probability in wrong[:_SHOWN]:
            table.add_row(path, true or "none", predicted or "none", f"{100 * probability:.0f} %")
        print_table(console, table)
        more = f"; all {len(wrong)} are in it" if len(wrong) > _SHOWN else ""
        console.print(f"As a file: {out / 'wrong.csv'}{more}", soft_wrap=True)
    else:
        console.print("It gets no test picture wrong.")
    console.print(f"Factor file: {task.factors}\nReport: {task.report}", soft_wrap=True)
    weights = [f"--weights={given}"] if (given := flags.FLAGS.weights) else []
    line = command("predict", f"--factors={task.factors}", "--images=PICTURE", *weights)
    console.print(f"To use it: {line}", soft_wrap=True)


# A sweep's words for settings, and this command's flags.
_FLAGS = {
    "config.skip_damaged=True": "--skip_damaged",
    "--workdir": "--out",
    "config.fact_tt.rank": "config.rank",
    LESS_MEMORY: "a smaller --batch_size",
}
_SETTING = re.compile(r"(?<![\w./-])(--)?config\.(?!json\b)")  # not a file config.json


def _in_flags(text: str) -> str:
    """A message of a sweep with the flags that this command has in the place of settings."""
    for setting, flag in _FLAGS.items():
        text = text.replace(setting, flag)
    return _SETTING.sub("--", text)


def main() -> None:
    options = flags.FLAGS
    require("The report of a fit", "report", "matplotlib", "scipy")
    if not options.images:
        raise UserError(
            "--images is missing: give a folder with a subfolder of pictures for each class, or a "
            f"CSV file. `{command('fit', '--help')}` says more."
        )
    stopping.end_gently()
    names = FitOptions.__dataclass_fields__
    console, out = Console(), Path(options.out).expanduser()
    given = {name: options[name].value for name in names}
    try:
        fit = run_fit(Path(options.images), out, console, given)
    except UserError as error:
        told = UserError(_in_flags(str(error)))
        told.at_once = error.at_once
        raise told from error
    wrong = wrong_pictures(fit)
    write_atomically(out / "wrong.csv", wrong_csv(wrong))
    _show(console, fit, wrong, out)
