"""Factor files: a task's factors and head as safetensors, with all that is needed to use them.

Tensors are `factors/...` as the method names them, `head/kernel` [d, classes] and `head/bias`, or
all of them quantised in one, `packed`. Factors that tasks share may lie in a dictionary beside the
file. The metadata are JSON texts; docs/files.md lists the keys.
The released PyTorch code's own files are read through the same function (reference.py).
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.algebra.quantise import Bits
from fact_jax.backbone.config import VARIANTS, ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.dictionary import Dictionary, find_dictionary
from fact_jax.files.guards import DAMAGE
from fact_jax.files.metadata import (
    FORMAT_VERSION,
    PACKED_VERSION,
    compact,
    expected_tensors,
    flat,
    read_bits,
    read_metadata,
    read_vit,
)
from fact_jax.files.packed import pack, packed_size, unpack
from fact_jax.files.tensors import SafetensorsFile, Tensors
from fact_jax.files.writing import COMPACT, file_bytes
from fact_jax.tuning.method import Method
from fact_jax.tuning.registry import describe
from fact_jax.version import __version__

# Entries that `to_bytes` writes itself.
OF_THE_FILE = {
    "bits",
    "dictionary",
    "format_version",
    "method",
    "method_settings",
    "vit",
    "num_classes",
    "versions",
}
# Fields of `ViTConfig` that must be those of the training. The variant decides the shape, and
# `load_vit` is told the rest.
_SHAPE = (
    *("width", "depth", "num_heads", "mlp_dim", "patch_size", "layer_scale", "registers"),
    *("class_token", "positions", "pre_norm", "mlp", "pooling"),
)
TIMM: dict[str, Any] = {"gelu": "exact", "layer_norm_eps": 1e-6}  # the forward pass of timm's ViT


class TrainedTask(NamedTuple):
    """The content of a factor file.

    Attributes:
      method: the method with the scale of the training, which ``method.adaptation`` uses.
      factors: the method's arrays.
      head: "kernel" [d, classes] and "bias" [classes].
      metadata: further entries; "vit" has the fields of the ViT's `ViTConfig`.
      path: the file.
      dictionary: which some of the factors come from, if the file shares one.
    """

    method: Method
    factors: dict[str, jax.Array]
    head: dict[str, jax.Array]
    metadata: dict[str, Any]
    path: Path
    dictionary: Dictionary | None = None

    @property
    def num_classes(self) -> int:
        """Classes of the head."""
        return self.head["bias"].shape[0]

    @property
    def config(self) -> ViTConfig:
        """The config of the ViT. Raises UserError for files of other code, which do not say it."""
        vit = self.metadata["vit"]
        if "num_heads" not in vit:
            raise UserError(
                f"{self.path} is a file of other code, which does not say its ViT. Make a factor "
                "file of it first, with the command export and its --variant."
            )
        return ViTConfig(**vit)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels; the head's logits are then independent."""
        return bool(self.metadata.get("multi_label"))

    @property
    def forward_settings(self) -> dict[str, Any]:
        """gelu and layer_norm_eps of the training, for `load_vit`.

        A `.pt` has timm's. An adapter of PEFT that does not say them has its variant's own.
        """
        vit = self.metadata["vit"]
        usual = {} if "base_model" in self.metadata else TIMM
        return {
            name: value for name in TIMM if (value := vit.get(name, usual.get(name))) is not None
        }


def to_bytes(
    method: Method,
    trainable: dict[str, Any],
    config: ViTConfig,
    metadata: dict[str, Any],
    bits: Bits | None = None,
    dictionary: Dictionary | None = None,
) -> bytes:
    """The file of {"factors": ..., "head": ...}, trained on a ViT of this config.

    `metadata` are further JSON-able entries: variant, weights_sha256, task, class_names,
    image_size, normalisation, jpeg_quality, protocol. With `bits` the numbers are quantised. With a
    `dictionary` its factors are left out.
    """
    check_classes("The task to be saved", trainable["head"]["bias"].shape[0])
    name, method_settings = describe(method)
    metadata = {
        "format_version": FORMAT_VERSION,
        "method": name,
        "method_settings": method_settings,
        "vit": config.stated() if bits is None else dataclasses.asdict(config),
        "num_classes": trainable["head"]["bias"].shape[0],
        "versions": {
            "fact_jax": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
        **metadata,
    }
    if dictionary is not None:
        metadata |= {"format_version": PACKED_VERSION, "dictionary": dictionary.checksum}
        factors = {k: v for k, v in trainable["factors"].items() if k not in dictionary.factors}
        trainable = {**trainable, "factors": factors}
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in flat(trainable).items()}
    if bits is None:
        return file_bytes(tensors, metadata)
    bits.check()
    metadata = compact(metadata | {"format_version": PACKED_VERSION, "bits": list(bits)})
    packed = pack(tensors, expected_tensors(metadata)[1], bits)
    return file_bytes({"packed": packed}, metadata, COMPACT)


def save_factors(
    path: str | os.PathLike[str],
    method: Method,
    factors: dict[str, Any],
    head: dict[str, Any],
    config: ViTConfig,
    bits: Bits | tuple[int, int] | None = None,
    **metadata: Any,
) -> None:
    """Writes a factor file, as a sweep does; `load_factors` and `predict` read it.

    Args:
      path: a name that ends in .safetensors; a file of this name is replaced.
      method: the method with the scale that it was trained with.
      factors: trained factors, as ``method.init(key, config)`` has them.
      head: "kernel" [d, classes] and "bias" [classes].
      config: the ViT's, ``model.config``.
      bits: bits a number of the factors and of the head's kernel, such as (4, 1); each 1, 2, 4, 8
        or 16. They are quantised, and the file is about as small as their sum. None: float32.
      **metadata: entries that help whoever uses the file; all may be left out. `variant`, `task`
        and `weights_sha256` (``fact_jax.checksum(base)``) are texts, `class_names` is a list of
        texts, `image_size` is in pixels, `normalisation` is one of `NORMALISATIONS`.
        Others are stored as they are, if JSON has them.

    Raises:
      UserError: the arrays are not those of the method on this ViT, a number is not finite, an
        entry is of another type or range, or the file cannot be written. Nothing is written then.
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".safetensors":
        raise UserError(f"Factor file {path}: expected a name that ends in .safetensors.")
    path = Path(path)
    if fault := _fault(head, config, metadata):
        raise UserError(f"Factor file {path}: {fault}.")
    trainable = {"factors": factors, "head": head}
    shapes = {name: tuple(np.shape(value)) for name, value in flat(trainable).items()}
    check_classes(f"Factor file {path}", (*shapes.get("head/bias", ()), 0)[0])
    try:
        content = to_bytes(method, trainable, config, metadata)
        expected = expected_tensors(read_metadata(_stored_metadata(content)))[1]
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"Factor file {path} cannot be written: {reason}.") from error
    check_tensors(path, shapes, expected, "Pass the factors of this method and config.")
    for name, value in flat(trainable).items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"Factor file {path}: {name!r} has non-finite numbers; not written.")
    if bits is not None:
        content = to_bytes(method, trainable, config, metadata, Bits(*bits))
    write_atomically(path, content)


def _fault(head: Any, config: Any, metadata: dict[str, Any]) -> str:
    """The reason why nothing can be done with a task that would be saved so; '' if there is none.

    Tensors and types are checked where they are read.
    """
    if not isinstance(config, ViTConfig):
        return f"config is of type {type(config).__name__}, expected a ViTConfig, model.config"
    if not isinstance(head, Mapping) or not all(hasattr(value, "shape") for value in head.values()):
        return "the head is no dict of arrays, 'kernel' [d, classes] and 'bias' [classes]"
    if missing := {"kernel", "bias"} - head.keys():
        return f"the head has no {min(missing)!r}"
    if reserved := sorted(metadata.keys() & OF_THE_FILE):
        return f"{reserved[0]} is not for callers to set"
    size, variant = metadata.get("image_size"), metadata.get("variant")
    if isinstance(size, int) and size % config.patch_size:
        return f"image_size {size} is not a multiple of the ViT's patch size {config.patch_size}"
    if variant in VARIANTS:  # others are names of users' own
        named = VARIANTS[variant]
        if differ := [name for name in _SHAPE if getattr(named, name) != getattr(config, name)]:
            return f"variant is {variant!r}, whose {differ[0]} is not the config's"
    return ""


def _stored_metadata(content: bytes) -> dict[str, str]:
    end = 8 + int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8:end])["__metadata__"]
    return metadata


def read_factors(path: Path) -> TrainedTask:
    """Reads a factor file of ours, as `load.load_factors` does."""
    try:
        with contextlib.closing(SafetensorsFile(path)) as file:
            task = read_task(path, file, read_metadata(file.metadata))
    except DAMAGE as error:
        if isinstance(error, UserError) and str(error).startswith(f"Factor file {path}"):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        if not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(
            f"{path} is not a factor file of fact-jax, or a damaged one ({reason}). Give one from "
            "a work directory's factors/ folder."
        ) from error
    if "dictionary" not in task.metadata:
        return task
    return with_dictionary(task, find_dictionary(path, task.metadata["dictionary"]))


def read_task(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> TrainedTask:
    """The task of these tensors and metadata, without the factors of its dictionary.

    Raises an error of DAMAGE, or UserError, for what no factor file holds.
    """
    method, arrays = _read_arrays(path, tensors, metadata)
    metadata["vit"] = dataclasses.asdict(read_vit(metadata))
    tree: dict[str, dict[str, jax.Array]] = {"factors": {}, "head": {}}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"Factor file {path}: tensor {name!r} has non-finite numbers.")
        group, _, leaf = name.partition("/")
        tree[group][leaf] = jnp.asarray(array)
    return TrainedTask(method, tree["factors"], tree["head"], metadata, path)


def with_dictionary(task: TrainedTask, dictionary: Dictionary) -> TrainedTask:
    """The task with the factors of its dictionary. Raises UserError if it is another task's."""
    config, weights = ViTConfig(**task.metadata["vit"]), task.metadata.get("weights_sha256")
    dictionary.check(f"Factor file {task.path}", task.method, config, weights)
    shared = {name: jnp.asarray(array) for name, array in dictionary.factors.items()}
    return task._replace(factors={**shared, **task.factors}, dictionary=dictionary)


def _read_arrays(
    path: Path, file: Tensors, metadata: dict[str, Any]
) -> tuple[Method, dict[str, np.ndarray]]:
    """The method, and the arrays by name, float32; names, shapes and types are checked first."""
    method, expected = expected_tensors(metadata)
    stored = {name: (file.shapes[name], file.dtypes[name]) for name in file.shapes}
    if bits := read_bits(metadata):
        check_tensors(path, stored, {"packed": ((packed_size(expected, bits),), "U8")})
        return method, unpack(file.read("packed"), expected, bits)
    check_tensors(path, stored, {name: (shape, "F32") for name, shape in expected.items()})
    return method, {name: file.read(name) for name in expected}


def check_classes(where: str, classes: int) -> None:
    """Raises UserError for a head without classes."""
    if classes < 1:
        raise UserError(f"{where} has a head of {classes} classes; expected at least 1.")


def check_tensors(
    path: Path,
    stored: dict[str, Any],
    expected: dict[str, Any],
    remedy: str = "Fetch or make it again.",
) -> None:
    """Raises UserError for tensors that are missing, unknown, or of another shape or dtype."""
    faults = [f"{name} is missing" for name in expected if name not in stored]
    faults += [f"{name[:100]} is unknown" for name in stored if name not in expected]
    faults += [
        f"{name} is {stored[name]}, expected {expected[name]}"
        for name in expected
        if name in stored and stored[name] != expected[name]
    ]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise UserError(
            f"Factor file {path} does not hold what it should: {'; '.join(faults[:4])}{more}. "
            f"{remedy}"
        )


def check_fits(
    task: TrainedTask, config: ViTConfig, base_checksum: str | None, any_weights: bool = False
) -> None:
    """Checks that factors belong to a ViT.

    The shape is compared and, where the file says them, the settings of the forward pass and the
    weights.

    Args:
      task: the content of a factor file.
      config: the ViT's, ``model.config``.
      base_checksum: ``fact_jax.checksum(base)``.
      any_weights: lets other weights of the same shape pass.

    Raises:
      UserError: they do not belong together.
    """
    trained, base = task.metadata["vit"], dataclasses.asdict(config)
    differ = [name for name in (*_SHAPE, *TIMM) if trained.get(name, base[name]) != base[name]]
    if differ:
        then, now = (", ".join(f"{k} {vit[k]}" for k in differ) for vit in (trained, base))
        changes = ", ".join(f"{k}={trained[k]!r}" for k in differ)
        variant = task.metadata.get("variant")
        raise UserError(
            f"Factor file {task.path} was trained for {then}{f' ({variant})' if variant else ''}; "
            f"this ViT has {now}. "
            + (
                "Give the variant and weights that it was trained on."
                if set(differ) & set(_SHAPE)
                else f"Load the weights with load_vit(variant, path, {changes})."
            )
        )
    wanted = task.metadata.get("weights_sha256")
    if not any_weights and wanted and not str(base_checksum).startswith(wanted):
        raise UserError(
            f"Factor file {task.path} was trained on other weights: their checksum is "
            f"{wanted[:16]}..., the base's {str(base_checksum)[:16]}.... Give the weights that it "
            "was trained on; predict, export and serve take others with --any_weights."
        )
