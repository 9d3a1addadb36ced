"""Factor files of the released PyTorch code (JieShibo/PETL-ViT, FacT/fact_tt.py and fact_tk.py).

It saves, with `torch.save`, the parameters whose names contain 'FacT' or 'head'; linear layers
store [out, in]. The scale is in its configs/tt|tk/<task>.yaml, not in the file.
Letters in shapes: `d` width, `r` rank, `c` classes, `L` blocks; 4 slices per MLP layer.
"""

import contextlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask, check_classes, check_tensors
from fact_jax.files.torch_zip import TorchZip
from fact_jax.tuning.fact_tk import FacTTK
from fact_jax.tuning.fact_tt import FacTTT
from fact_jax.tuning.linear import Linear
from fact_jax.tuning.method import Method

_ATTENTION = ("q", "k", "v", "proj")
_SLICES = 4  # of fc1, and of fc2: the released code knows no other MLP


def _shapes(
    rank: int, width: int, classes: int, depth: int, tucker: bool
) -> dict[str, tuple[Any, ...]]:
    """Names and shapes of a file's tensors."""
    r, d, g = rank, width, _SLICES
    shapes: dict[str, tuple[Any, ...]] = {"FacTu.weight": (r, d), "FacTv.weight": (d, r)}
    if tucker:
        shapes |= {"FacTc": (r, r, r), "FacTp": (r, (4 + 2 * g) * depth)}
    else:
        for i in range(depth):
            shapes |= {f"blocks.{i}.attn.{site}_FacTs.weight": (r, r) for site in _ATTENTION}
            shapes[f"blocks.{i}.mlp.fc1_FacTs.weight"] = (g * r, r)
            shapes[f"blocks.{i}.mlp.fc2_FacTs.weight"] = (r, g * r)
    return {**shapes, "head.weight": (classes, d), "head.bias": (classes,)}


def read_reference(
    path: str | os.PathLike[str], method: str | None = None, scale: float | None = None
) -> TrainedTask:
    """Reads a `.pt` of the released code; rank, width, blocks and classes are seen in its shapes.

    `method` is "tt" or "tk", or None for what the names say. A Tucker file's MLP cores are the
    released code's, interleaved (`FacTTK.mlp_cores`). All names may share a prefix, such as
    'module.'.

    Raises UserError if no scale is given, if the method is another one, or if tensors are missing,
    unknown or ill-shaped.
    """
    with contextlib.closing(TorchZip(path)) as file:
        return _read(file, method, scale)


def _read(file: TorchZip, method: str | None, scale: float | None) -> TrainedTask:
    key = "FacTu.weight"
    prefix = next((n.removesuffix(key) for n in file.shapes if n.endswith(key)), "")
    if stray := [name for name in file.shapes if not name.startswith(prefix)]:
        raise UserError(
            f"{file.path}: tensor {stray[0][:100]!r} does not begin with {prefix[:100]!r} as "
            f"{key!r} does there. Save the factors and the head under one prefix."
        )
    names = {name.removeprefix(prefix): name for name in file.shapes}
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    try:
        (rank, width), (classes, _) = shapes[key], shapes["head.weight"]
        tucker = "FacTc" in shapes
        columns = shapes["FacTp"][1] if tucker else 0
        if min(rank, width) < 1:
            raise ValueError(f"rank {rank} and width {width}")
    except (KeyError, ValueError, IndexError) as error:
        first = ", ".join(list(file.shapes)[:4])
        raise UserError(
            f"{file.path} is not a factor file of FacT's PyTorch code: it holds {first} ..., and "
            f"no sound FacTu.weight [r, d] and head.weight [classes, d]."
        ) from error
    check_classes(str(file.path), classes)
    kind = "tk" if tucker else "tt"
    if method is not None and method.removeprefix("fact_") != kind:
        raise UserError(f"{file.path} is of method {kind!r} by its names; --method is {method!r}.")
    if scale is None:
        raise UserError(
            f"{file.path} is a file of the PyTorch code, which does not store the scale. Give it "
            f"with --scale: it was that code's --scale, or is in its configs/{kind}/<task>.yaml."
        )
    if not np.isfinite(scale):
        raise UserError(f"scale is {scale}; expected a number.")
    depth = columns // (4 + 2 * _SLICES) if tucker else sum(".q_FacTs" in name for name in shapes)
    check_tensors(file.path, shapes, _shapes(rank, width, classes, depth, tucker))
    if depth == 0:
        raise UserError(f"{file.path} holds no factors of any block.")
    tensors = {name: _floats(file, stored) for name, stored in names.items()}
    head = {"kernel": tensors["head.weight"].T, "bias": tensors["head.bias"]}
    factors = {"U": tensors["FacTu.weight"].T, "V": tensors["FacTv.weight"].T}
    trained: Method
    if tucker:
        trained = FacTTK(rank=rank, scale=float(scale), mlp_cores="released")
        factors |= {"C": tensors["FacTc"], "P": tensors["FacTp"]}
    else:
        trained = FacTTT(rank=rank, scale=float(scale))
        factors["S"] = np.stack([_cores(tensors, i, rank) for i in range(depth)])
    metadata = {
        "vit": {"width": width, "depth": depth, "mlp_dim": _SLICES * width},
        "num_classes": classes,
        "source": "FacT's PyTorch code",
    }
    factors, head = jax.tree.map(jnp.asarray, (factors, head))
    return TrainedTask(trained, factors, head, metadata, file.path)


def _floats(file: TorchZip, name: str) -> np.ndarray:
    array = file.read(name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{file.path}: tensor {name!r} is {array.dtype}; expected numbers.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{file.path}: tensor {name!r} has numbers that are not finite.")
    return array


def _cores(tensors: dict[str, np.ndarray], layer: int, rank: int) -> np.ndarray:
    """A block's cores [12, r in, r out], in the order of slices.py."""
    block, r, g = f"blocks.{layer}.", rank, _SLICES
    attention = [tensors[f"{block}attn.{site}_FacTs.weight"].T for site in _ATTENTION]
    fc1 = tensors[f"{block}mlp.fc1_FacTs.weight"].reshape(g, r, r).transpose(0, 2, 1)
    fc2 = tensors[f"{block}mlp.fc2_FacTs.weight"].reshape(r, g, r).transpose(1, 2, 0)
    return np.concatenate([attention, fc1, fc2])


def reference_tensors(
    method: Method, factors: dict[str, Any], head: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The released code's tensors of trained factors, float32, for `torch_zip.torch_bytes`.

    Raises UserError where that code cannot hold them: another method than FacT-TT, FacT-TK and the
    linear probe, a Tucker form whose MLP cores follow the formula (its interleaving mixes the
    columns of a block's four cores, so that in general no factors of the same rank give the same
    increments), or an MLP that is not cut into 4 slices.
    """
    if not isinstance(method, FacTTT | FacTTK | Linear):
        raise UserError(
            f"The PyTorch code of FacT has FacT-TT, FacT-TK and the linear probe, no "
            f"{type(method).__name__}. Export the merged weights as .npz, which its ViT loads, or "
            "use --format peft or hf."
        )
    if isinstance(method, FacTTK) and method.mlp_cores != "released":
        raise UserError(
            "The PyTorch code interleaves the four MLP cores of a block, and these factors were "
            "trained with mlp_cores='formula': no factors of the same rank give the same "
            "increments there. Train with mlp_cores='released', or export the merged weights as "
            ".npz, which its ViT loads."
        )
    factors, head = jax.tree.map(lambda x: np.asarray(x, np.float32), (factors, head))
    check_classes("The task to be saved", len(head["bias"]))
    tensors = {"head.weight": head["kernel"].T, "head.bias": head["bias"]}
    if isinstance(method, Linear):
        return tensors
    tensors |= {"FacTu.weight": factors["U"].T, "FacTv.weight": factors["V"].T}
    if isinstance(method, FacTTK):
        return {**tensors, "FacTc": factors["C"], "FacTp": factors["P"]}
    r, g = factors["S"].shape[-1], _SLICES
    if factors["S"].shape[1] != 4 + 2 * g:
        raise UserError(
            f"The PyTorch code cuts each MLP layer into {g} slices, of mlp_dim = {g} x width; "
            f"these factors have {(factors['S'].shape[1] - 4) // 2}."
        )
    for i, cores in enumerate(factors["S"]):
        for site, core in zip(_ATTENTION, cores[:4], strict=True):
            tensors[f"blocks.{i}.attn.{site}_FacTs.weight"] = core.T
        fc1 = cores[4 : 4 + g].transpose(0, 2, 1).reshape(g * r, r)
        fc2 = cores[4 + g :].transpose(2, 0, 1).reshape(r, g * r)
        tensors[f"blocks.{i}.mlp.fc1_FacTs.weight"] = fc1
        tensors[f"blocks.{i}.mlp.fc2_FacTs.weight"] = fc2
    return tensors
