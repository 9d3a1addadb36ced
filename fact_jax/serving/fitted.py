"""A trained task and its ViT, which predict pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fact_jax.errors import UserError
from fact_jax.ranges import Whole, check
from fact_jax.serving.bank import Prediction
from fact_jax.serving.inputs import Pictures
from fact_jax.serving.predict import Predictor
from fact_jax.training.metrics import probabilities

Picture = str | os.PathLike[str]


class Accuracy(NamedTuple):
    """An accuracy on test pictures, and how sure it is.

    Attributes:
      measure: 'accuracy', or 'map' (mean average precision) of a task with several labels.
      value: in %.
      error: its standard error in %, by the number of pictures.
      interval: the 95 % interval in %.
      num_images: test pictures.
    """

    measure: str
    value: float
    error: float
    interval: tuple[float, float]
    num_images: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.value:.1f} % ± {self.error:.1f} ({self.num_images} test pictures; 95 % "
            f"interval {low:.1f} to {high:.1f})"
        )


class FittedTask:
    """A task that `fact_jax.fit` has trained.

    Attributes:
      predictor: the ViT with the task's changes.
      accuracy: on test pictures.
      factors: the factor file, which `load_factors`, `Bank` and `fact-jax predict` read.
      report: the page of the report.
      classes: their names.
    """

    def __init__(self, predictor: Predictor, accuracy: Accuracy, report: Path):
        self.predictor, self.accuracy, self.report = predictor, accuracy, report
        task = predictor.task
        self.factors = task.path
        names = task.metadata.get("class_names") or range(task.num_classes)
        self.classes = tuple(map(str, names))

    def predict(self, picture: Picture, topk: int = 5) -> Prediction:
        """Predicts the most probable classes of a picture.

        Args:
          picture: the file.
          topk: most classes; the task may have fewer.

        Returns:
          The names of the classes, the most probable first, and their probabilities, which add up
          to 1 over all classes unless a picture has several labels.

        Raises:
          UserError: the file is no picture that can be read.
        """
        check("topk", topk, Whole(1))
        if not isinstance(picture, str | os.PathLike):
            raise UserError(
                f"predict takes the path of a picture, and got a {type(picture).__name__}. For "
                "arrays there is `predictor.logits`."
            )
        logits = predict_pictures(self.predictor, [picture])
        p = probabilities(logits, self.predictor.task.multi_label)[0]
        order = np.argsort(-p, kind="stable")[:topk]
        name = str(self.predictor.task.metadata.get("task") or "")
        return Prediction(name, tuple(self.classes[i] for i in order), p[order])


def predict_pictures(predictor: Predictor, pictures: Sequence[Picture]) -> Float[np.ndarray, "n c"]:
    """Computes the logits of pictures, prepared as the task's factor file says.

    Args:
      predictor: the ViT and the task.
      pictures: their files.

    Raises:
      UserError: a file is no picture that can be read.
    """
    paths = [Path(picture).expanduser() for picture in pictures]
    read = Pictures.of(paths, predictor.task, predictor.model.config.image_size)
    rows = list(predictor.stream(read.batches(predictor.batch_size)))
    for i, reason in read.unreadable.items():
        raise UserError(f"{read.paths[i]} cannot be read as a picture ({reason}).")
    empty = np.empty((0, predictor.task.num_classes), np.float32)
    return np.concatenate(rows) if rows else empty
