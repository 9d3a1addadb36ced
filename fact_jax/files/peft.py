"""LoRA and DoRA adapters in the form of Hugging Face's PEFT, read as trained tasks of our methods.

PEFT stores, for each dense layer, ``lora_A.weight`` [r, in] and ``lora_B.weight`` [out, r]; the
increment is ``scaling * B @ A``. DoRA also has ``lora_magnitude_vector`` [out]. Layers may have
ranks of their own, and some may have none: ours are stacked, so that they are padded with zeros.
Letters: `d` width, `r` rank, `c` classes.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.config import VARIANTS, ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.beside import read_beside
from fact_jax.files.factors import TrainedTask, check_classes
from fact_jax.files.guards import DAMAGE, MAX_NAME
from fact_jax.files.metadata import check_preparation
from fact_jax.files.peft_config import (
    CONFIG,
    AdapterConfig,
    base_preprocessing,
    base_variant,
    read_config,
    scaling,
)
from fact_jax.files.peft_names import Naming, Place, find_naming, stray
from fact_jax.files.tensors import TensorFile, open_tensors
from fact_jax.tuning import DoRA, LoRA

TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
SOURCE = "a PEFT adapter"
PREFIX = "base_model.model."

MAX_NUMBERS = 2**28  # after padding: a gigabyte; a ViT-H at rank 64 has 50 million
_PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_NORMS = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_HEAD = re.compile(r"(classifier|head|score|fc)(?:\.modules_to_save)?(?:\.default)?\.(weight|bias)")


class Pair(NamedTuple):
    """The two tensors of a dense layer, and where it lies.

    Attributes:
      module: the layer's full name in the base model.
      place: its site and block.
      rank: r.
      scaling: what B A is multiplied by.
      norms: the name of DoRA's norms of the columns, or None.
    """

    module: str
    place: Place
    rank: int
    scaling: float
    norms: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter's."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path) -> TrainedTask:
    """Reads an adapter directory. Names and shapes are checked before numbers are read.

    The scale of the method is PEFT's scaling if all layers have the same one; otherwise it is 1,
    and the scalings are in B.

    Raises:
      UserError: it is damaged, no adapter of a ViT that is known here, has no head, or is another
        kind of adapter than LoRA or DoRA in plain form.
    """
    config = read_config(folder)
    path = next((folder / name for name in TENSORS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has {CONFIG}, but neither {' nor '.join(TENSORS)}. Fetch both.")
    try:
        with contextlib.closing(open_tensors(path)) as file:
            return _Adapter.of(file, config).task(folder)
    except DAMAGE as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, UserError) and str(path) in reason:
            raise
        raise UserError(f"Adapter {folder} cannot be read: {reason}.") from error


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """An adapter's opened tensors with what their names and shapes say."""

    file: TensorFile
    config: AdapterConfig
    naming: Naming
    pairs: tuple[Pair, ...]
    head: dict[str, str]  # "weight" and "bias" -> the tensor's name

    @classmethod
    def of(cls, file: TensorFile, config: AdapterConfig) -> "_Adapter":
        modules: dict[str, str] = {}  # the layer's name -> the same as the file has it
        head: dict[str, str] = {}
        norms: dict[str, str] = {}
        for name in file.shapes:
            plain = name[:MAX_NAME].removeprefix(PREFIX)
            if pair := _PAIR.fullmatch(plain):
                modules[pair[1]] = name[: name.index(".lora_")]
            elif norm := _NORMS.fullmatch(plain):
                if norm[1] in norms:
                    raise ValueError(f"it has the norms of DoRA of {norm[1][:100]} twice")
                norms[norm[1]] = name
            elif found := _HEAD.fullmatch(plain):
                head[found[2]] = name
            else:
                raise ValueError(stray(plain))
        naming, places = find_naming(modules)
        pairs = []
        for module, place in places.items():
            a, b = _names(file, modules[module])
            rank, other = (*file.shapes[a], 0)[0], (*file.shapes[b], 0, 0)[1]
            if rank != other or not 1 <= rank <= 65_536:
                raise ValueError(
                    f"{module} has lora_A {list(file.shapes[a])} and lora_B "
                    f"{list(file.shapes[b])}; expected [r, in] and [out, r]"
                )
            strength = scaling(config, module, rank)
            pairs.append(Pair(modules[module], place, rank, strength, norms.get(module)))
        if (norms or config.get("use_dora")) and norms.keys() != places.keys():
            layer = min(norms.keys() ^ places.keys())
            both = ("norms of DoRA", "lora_A and lora_B")
            has, lacks = both if layer in norms else reversed(both)
            raise ValueError(f"{layer[:100]} has {has} and no {lacks}; expected both or neither")
        return cls(file, config, naming, tuple(pairs), head)

    def task(self, folder: Path) -> TrainedTask:
        head = self._head()
        classes = len(head["bias"])
        check_classes(str(folder), classes)
        base = self.config.get("base_model_name_or_path")
        metadata = {
            "source": SOURCE,
            "base_model": base,
            "num_classes": classes,
            **base_preprocessing(base),
            **read_beside(folder, classes),
        }
        vit = self._vit(metadata, head["kernel"].shape[0])
        same_width = (v.patch_size for v in VARIANTS.values() if v.width == vit["width"])
        check_preparation(metadata, vit.get("patch_size") or min(same_width, default=14))
        method, factors = self._factors(vit)
        factors, head = jax.tree.map(jnp.asarray, (factors, head))
        return TrainedTask(method, factors, head, metadata | {"vit": vit}, folder)

    def _vit(self, metadata: dict[str, Any], width: int) -> dict[str, Any]:
        """The known settings of the ViT: all of them, if the metadata or the base's name say it."""
        # transformers' ViTs have this epsilon; other kinds have that of their variant.
        settings = {"layer_norm_eps": 1e-12} if "vit" in self.naming.models else {}
        seen = max(pair.place.layer for pair in self.pairs) + 1
        variant = metadata.get("variant") or base_variant(metadata["base_model"])
        if stated := metadata.get("vit"):
            vit = ViTConfig(**stated).stated()
        elif variant in VARIANTS and VARIANTS[variant].width == width:
            named = VARIANTS[variant].replace(**settings)
            side = metadata.get("image_size") or named.image_size
            size = {} if side % named.patch_size else {"image_size": side}
            vit = named.replace(**size).stated()
            metadata["variant"] = variant
        else:
            depths = {v.depth for v in VARIANTS.values() if v.width == width} or {seen}
            vit = {"width": width, "depth": max(seen, *depths), **settings}
            if (mlp_dim := self._mlp_dim()) is not None:
                vit["mlp_dim"] = mlp_dim
        if vit["width"] != width or not seen <= vit["depth"] <= 200:
            raise ValueError(
                f"it changes {seen} blocks of width {width}; its base model has {vit['depth']} of "
                f"width {vit['width']}"
            )
        return vit

    def _mlp_dim(self) -> int | None:
        for pair in self.pairs:
            a, b = (self.file.shapes[name] for name in _names(self.file, pair.module))
            if pair.place.site in ("fc1", "fc2"):
                return b[0] if pair.place.site == "fc1" else a[1]
        return None

    def _head(self) -> dict[str, np.ndarray]:
        """The head, kernel [d, c] and bias [c]."""
        if "weight" not in self.head:
            raise ValueError(
                "it holds no head (classifier.weight): it was saved without modules_to_save. Add "
                "the classifier that it was trained with"
            )
        shape = self.file.shapes[self.head["weight"]]
        if len(shape) != 2 or shape[0] * shape[1] > MAX_NUMBERS:
            raise ValueError(f"its head is {list(shape)}; expected [classes, width]")
        weight = self._floats(self.head["weight"], shape)
        bias = np.zeros(shape[0], np.float32)
        if "bias" in self.head:
            bias = self._floats(self.head["bias"], shape[:1])
        if "dinov2" in self.naming.models and shape[1] % 2 == 0:
            width = shape[1] // 2
            if weight[:, width:].any():
                raise ValueError(
                    "its head reads the mean of the patches, too, as Dinov2ForImageClassification "
                    "does; ours reads the class token alone"
                )
            weight = weight[:, :width]
        return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}

    def _factors(self, vit: dict[str, Any]) -> tuple[LoRA | DoRA, dict[str, np.ndarray]]:
        """Our method, and A [l, in, r], B [l, r, out] and DoRA's norms [l, out] of each site."""
        scalings = {pair.scaling for pair in self.pairs}
        same = scalings.pop() if len(scalings) == 1 else None
        present = {pair.place.site for pair in self.pairs}
        sites = [s for s in SITES if s in present or (s in "qkv" and "qkv" in present)]
        depth, rank = vit["depth"], max(pair.rank for pair in self.pairs)
        mlp_dim = vit.get("mlp_dim", 4 * vit["width"])
        rows = {s: mlp_dim if s == "fc2" else vit["width"] for s in sites}
        columns = {s: mlp_dim if s == "fc1" else vit["width"] for s in sites}
        if depth * rank * (sum(rows.values()) + sum(columns.values())) > MAX_NUMBERS:
            raise ValueError(f"rank {rank} in {depth} blocks is larger than any ViT's")
        # All shapes before any number.
        for pair in self.pairs:
            self._check(pair, vit["width"], mlp_dim)
        factors = {}
        for s in sites:
            factors[f"A_{s}"] = np.zeros((depth, rows[s], rank), np.float32)
            factors[f"B_{s}"] = np.zeros((depth, rank, columns[s]), np.float32)
        for pair in self.pairs:
            strength = 1.0 if same is not None else pair.scaling
            for s, a, b in self._parts(pair):
                factors[f"A_{s}"][pair.place.layer, :, : pair.rank] = a.T
                factors[f"B_{s}"][pair.place.layer, : pair.rank] = strength * b.T
        settings = (rank, 1.0 if same is None else same, ",".join(sites))
        if self.pairs[0].norms is None:
            return LoRA(*settings), factors
        norms = {f"norms_{s}": np.full((depth, columns[s]), np.nan, np.float32) for s in sites}
        for pair in self.pairs:
            parts = "qkv" if pair.place.site == "qkv" else (pair.place.site,)
            total = sum(columns[s] for s in parts)
            stored = self._floats(pair.norms or "", (total,))
            for s, part in zip(parts, np.split(stored, len(parts)), strict=True):
                norms[f"norms_{s}"][pair.place.layer] = part
        if missing := [name for name, array in norms.items() if np.isnan(array).any()]:
            raise ValueError(
                f"its {missing[0]} are not those of all {depth} blocks; those of blocks without "
                "DoRA are only in the base model"
            )
        return DoRA(*settings), factors | norms

    def _check(self, pair: Pair, width: int, mlp_dim: int) -> None:
        site = pair.place.site
        inputs, outputs = {"fc2": mlp_dim}, {"fc1": mlp_dim, "qkv": 3 * width}
        expected = [(pair.rank, inputs.get(site, width)), (outputs.get(site, width), pair.rank)]
        stored = [self.file.shapes[name] for name in _names(self.file, pair.module)]
        if pair.norms and self.file.shapes[pair.norms] != expected[1][:1]:
            raise ValueError(
                f"{pair.norms[:150]} is {list(self.file.shapes[pair.norms])}; expected "
                f"{list(expected[1][:1])}"
            )
        if stored != expected:
            raise ValueError(
                f"{pair.module[:100]} has lora_A {list(stored[0])} and lora_B {list(stored[1])}; "
                f"expected {list(expected[0])} and {list(expected[1])}"
            )

    def _parts(self, pair: Pair) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """A [r, in] and B [out, r] of each of our sites that a layer is."""
        a, b = (self._floats(n, self.file.shapes[n]) for n in _names(self.file, pair.module))
        if pair.place.site != "qkv":
            yield pair.place.site, a, b
            return
        for site, part in zip("qkv", np.split(b, 3), strict=True):
            yield site, a, part

    def _floats(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self.file.read(name)
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"tensor {name[:100]!r} is {array.dtype} {list(array.shape)}; expected numbers of "
                f"shape {list(shape)}"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"tensor {name[:100]!r} has numbers that are not finite")
        return array


def _names(file: TensorFile, module: str) -> tuple[str, str]:
    """The tensors A and B of a layer, by its name in the file."""
    found = []
    for letter in "AB":
        both = (f"{module}.lora_{letter}.weight", f"{module}.lora_{letter}.default.weight")
        name = next((name for name in both if name in file.shapes), None)
        if name is None:
            raise ValueError(f"{both[0][:100]} is missing")
        found.append(name)
    return found[0], found[1]
