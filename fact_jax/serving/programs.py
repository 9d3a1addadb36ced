"""A trained task as a compiled-ahead program: StableHLO through `jax.export`, ONNX by jax2onnx.

The programs hold the weights, with all changes that merge; changes that do not merge, such as
prompts, are part of the program. Letters: `b` batch, `s` side, `d` width, `c` classes.
"""

import dataclasses
import datetime
import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax import export

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT, features
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.files.beside import json_bytes, labels, preprocessor
from fact_jax.files.card import Card, model_card
from fact_jax.files.factors import TrainedTask, check_classes, check_fits
from fact_jax.files.weights import checksum
from fact_jax.training.evaluation import Merged, logits
from fact_jax.training.trial import logits_of
from fact_jax.tuning.method import Base
from fact_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIPTION = "model.json"
_STABLEHLO = """from jax import export  # needs flatbuffers, too

with open("THIS_FOLDER/model.stablehlo", "rb") as file:
    model = export.deserialize(bytearray(file.read()))
logits = model.call(images)  # float32 [n, {side}, {side}, 3], preprocessed as below"""
_ONNX = """import onnxruntime

model = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx")
(logits,) = model.run(None, {{"images": images}})  # float32 [n, {side}, {side}, 3]"""
_ONNX_FACTORS = """import numpy as np
import onnxruntime
from safetensors.numpy import load_file

model = onnxruntime.InferenceSession("THIS_FOLDER/model.onnx")
task = {{**load_file("TASK.safetensors"), "scale": np.array(SCALE, np.float32)}}
(logits,) = model.run(None, {{"images": images, **task}})  # float32 [n, {side}, {side}, 3]"""


@dataclasses.dataclass(frozen=True)
class Program:
    """A ViT with a task, to be written as a program.

    Attributes:
      config: the ViT's.
      base: its frozen parameters.
      task: the trained task.
      card: facts for the model card.
    """

    config: ViTConfig
    base: Base
    task: TrainedTask
    card: Card

    def check(self, any_weights: bool = False) -> None:
        """Raises UserError if the task does not belong to the weights."""
        check_classes(str(self.task.path), self.task.num_classes)
        check_fits(self.task, self.config, checksum(self.base), any_weights)

    @property
    def side(self) -> int:
        """Pixels along a side of the images."""
        return int(self.task.metadata.get("image_size") or self.config.image_size)

    @property
    def merged(self) -> Callable[[jax.Array], jax.Array]:
        """Logits [b, c] of normalised images [b, s, s, 3], with the task's changes merged."""
        task = self.task
        trainable = {"factors": task.factors, "head": task.head}
        trained = Merged.of(task.method, self.config, self.base, trainable)
        return functools.partial(logits, self.config, trained)

    def of_factors(
        self,
        images: jax.Array,
        factors: dict[str, jax.Array],
        head: dict[str, jax.Array],
        scale: Any,
    ) -> jax.Array:
        """Logits [b, c] of a task of this method whose arrays are inputs of the program."""
        adaptation = self.task.method.adaptation(factors, self.config, scale)
        x = features(ViT(self.config), self.base, images, adaptation)
        return logits_of(head, x)

    def description(self, kind: str, **more: Any) -> dict[str, Any]:
        """The content of `model.json`: inputs, labels, preprocessing, versions and the date."""
        metadata = self.task.metadata
        return {
            "format": kind,
            "input": {
                "name": "images",
                "dtype": "float32",
                "shape": ["b", self.side, self.side, 3],
            },
            "output": {"name": "logits", "dtype": "float32"},
            "labels": labels(metadata, self.task.num_classes),
            "several_labels": self.task.multi_label,
            "preprocessing": preprocessor(metadata, self.config.image_size),
            "preprocessing_in_words": self.card.preprocessing,
            "task": metadata.get("task"),
            "method": self.card.method,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {"fact_jax": __version__, "jax": jax.__version__},
            **more,
        }

    def files(self, model: dict[str, bytes], about: dict[str, Any], use: str) -> dict[str, bytes]:
        """The files of the folder, with those that describe the program."""
        described = self.card if "labels" in about else self.card._replace(labels=())
        card = model_card(described, about["format"], use.format(side=self.side))
        return {**model, DESCRIPTION: json_bytes(about), "README.md": card.encode()}


def stablehlo_files(program: Program) -> dict[str, bytes]:
    """The files of a StableHLO artefact, by their names; it runs on each of PLATFORMS.

    JAX promises to read an artefact for six months, so that the description says its version.

    Raises:
      UserError: the extra `stablehlo` is not installed.
    """
    require("StableHLO", "stablehlo", "flatbuffers")
    (b,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, program.side, program.side, 3), np.float32)
    exported = export.export(jax.jit(program.merged), platforms=PLATFORMS)(images)
    about = program.description(
        "stablehlo",
        platforms=list(exported.platforms),
        calling_convention_version=exported.calling_convention_version,
    )
    return program.files({"model.stablehlo": bytes(exported.serialize())}, about, _STABLEHLO)


def onnx_files(program: Program) -> dict[str, bytes]:
    """The files of an ONNX model, by their names; the batch has any size.

    Raises:
      UserError: jax2onnx is not installed, or cannot write this method's program.
    """
    model = _onnx(program, program.merged, {})
    return program.files({"model.onnx": model}, program.description("onnx"), _ONNX)


def onnx_factors_files(program: Program) -> dict[str, bytes]:
    """The files of an ONNX model with the factors and the head as inputs, for all tasks.

    Inputs have the names of the tensors of a factor file, such as "factors/U" and "head/kernel",
    and "scale". The task of the program gives the method and its rank, but no number.

    Raises:
      UserError: as for `onnx_files`.
    """
    factors = dict(program.task.factors)
    shapes: dict[str, tuple[Any, ...]] = {f"factors/{k}": v.shape for k, v in factors.items()}
    shapes |= {"head/kernel": (program.config.width, "c"), "head/bias": ("c",), "scale": ()}

    def of_arrays(images: jax.Array, *arrays: jax.Array) -> jax.Array:
        kernel, bias, scale = arrays[len(factors) :]
        named = dict(zip(factors, arrays, strict=False))
        return program.of_factors(images, named, {"kernel": kernel, "bias": bias}, scale)

    model = _onnx(program, of_arrays, shapes)
    inputs = {name: list(shape) for name, shape in shapes.items()}
    about = program.description("onnx", task_inputs=inputs)
    about = {k: v for k, v in about.items() if k not in ("labels", "task")}  # of the example
    return program.files({"model.onnx": model}, about, _ONNX_FACTORS)


def require_onnx() -> None:
    """Raises UserError if what writes ONNX is not installed."""
    if missing := [name for name in ("jax2onnx", "onnx", "onnx_ir") if find_spec(name) is None]:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}: pip install 'fact-jax[onnx]', then pip install "
            "--no-deps jax2onnx==0.17.1, whose own pins exclude this package's orbax-checkpoint."
        )


def _onnx(program: Program, function: Any, more: dict[str, tuple[Any, ...]]) -> bytes:
    """The ONNX model of a function of images and of further inputs of these shapes."""
    require_onnx()
    import jax2onnx

    images = ("b", program.side, program.side, 3)
    try:
        model = jax2onnx.to_onnx(
            function,
            inputs=[images, *more.values()],
            input_names=["images", *more],
            output_names=["logits"],
            model_name="fact_jax",
            return_mode="proto",
        )
        content: bytes = model.SerializeToString()
    except Exception as error:  # whatever a converter of programs may raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"jax2onnx cannot write this program ({type(error).__name__}: {reason}). It was tried "
            "with jax 0.10.2; another way is --format hf and then optimum (docs/exchange.md)."
        ) from error
    return content
