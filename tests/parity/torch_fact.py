"""FacT in PyTorch, for the tests: written from the method's formulas, slice by slice.

It changes a timm VisionTransformer in place and names its parameters as the released code's
checkpoints do: `FacTu.weight` [r, d], `FacTv.weight` [d, r]; FacT-TT has
`blocks.N.attn.{q,k,v,proj}_FacTs.weight` [r, r], `blocks.N.mlp.fc1_FacTs.weight` [4r, r] and
`fc2_FacTs.weight` [r, 4r]; FacT-TK has `FacTc` [r, r, r] and `FacTp` [r, 12 L].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_models import import_timm, nchw, timm_vit

from fact_jax import FacTTK, FacTTT, ViTConfig

Drop = Callable[[torch.Tensor], torch.Tensor]


def add_fact(model: nn.Module, method: FacTTT | FacTTK, drop: Drop = lambda z: z) -> nn.Module:
    """Gives timm's ViT fresh factors; `drop` acts on the rank-r activations."""
    width, rank, depth = model.embed_dim, method.rank, len(model.blocks)
    model.FacTu = nn.Linear(width, rank, bias=False)
    model.FacTv = nn.Linear(rank, width, bias=False)
    if isinstance(method, FacTTK):
        model.FacTc = nn.Parameter(torch.empty(rank, rank, rank))
        model.FacTp = nn.Parameter(torch.empty(rank, 12 * depth))
    for n, block in enumerate(model.blocks):
        if isinstance(method, FacTTT):
            for site in ("q", "k", "v", "proj"):
                setattr(block.attn, f"{site}_FacTs", nn.Linear(rank, rank, bias=False))
            block.mlp.fc1_FacTs = nn.Linear(rank, 4 * rank, bias=False)
            block.mlp.fc2_FacTs = nn.Linear(4 * rank, rank, bias=False)
            middle = partial(_tt_middle, block)
        else:
            middle = partial(_tk_middle, model, method.mlp_cores, 12 * n)
        increment = partial(_increment, model, method.scale, drop, middle)
        block.attn.forward = partial(_attention, block.attn, increment)
        block.mlp.forward = partial(_mlp, block.mlp, increment)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "FacT" in name or "head" in name
    return model


def _increment(model, scale, drop, middle, site: str, x: torch.Tensor) -> torch.Tensor:
    """s V(drop(core(U x))); fc1's output and fc2's input are four pieces of the model's width."""
    pieces = x.split(model.embed_dim, dim=-1)
    z = drop(middle(site, torch.cat([model.FacTu(piece) for piece in pieces], dim=-1)))
    pieces = z.split(model.FacTv.in_features, dim=-1)
    return scale * torch.cat([model.FacTv(piece) for piece in pieces], dim=-1)


def _tt_middle(block, site: str, z: torch.Tensor) -> torch.Tensor:
    module = block.mlp if site.startswith("fc") else block.attn
    return getattr(module, f"{site}_FacTs")(z)


def _tk_middle(model, mlp_cores: str, first: int, site: str, z: torch.Tensor) -> torch.Tensor:
    """U x times the core(s) of a site; a slice's core is C @ P[:, i], i counts q k v o fc1 fc2."""

    def core(i):
        return torch.einsum("abk,k->ab", model.FacTc, model.FacTp[:, first + i])

    if not site.startswith("fc"):
        return z @ core(("q", "k", "v", "proj").index(site))
    start, rank = 4 if site == "fc1" else 8, model.FacTc.shape[0]
    if mlp_cores == "released":  # [r, r, 4] taken as [r, 4r] without a permutation
        flat = (model.FacTc @ model.FacTp[:, first + start : first + start + 4]).reshape(rank, -1)
        return z @ flat if site == "fc1" else z @ flat.t()
    if site == "fc1":
        return torch.cat([z @ core(start + g) for g in range(4)], dim=-1)
    return sum(piece @ core(start + g) for g, piece in enumerate(z.split(rank, dim=-1)))


def _attention(attn, increment, x: torch.Tensor, **_) -> torch.Tensor:
    batch, tokens, width = x.shape
    q, k, v = (
        (part + increment(site, x)).reshape(batch, tokens, attn.num_heads, -1).transpose(1, 2)
        for site, part in zip("qkv", attn.qkv(x).chunk(3, dim=-1), strict=True)
    )
    weights = (q @ k.transpose(-2, -1) * (width // attn.num_heads) ** -0.5).softmax(dim=-1)
    out = (weights @ v).transpose(1, 2).reshape(batch, tokens, width)
    return attn.proj(out) + increment("proj", out)


def _mlp(mlp, increment, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(mlp.fc1(x) + increment("fc1", x))
    return mlp.fc2(hidden) + increment("fc2", hidden)


# --- Our factors and the state dict's


TURNED = {"FacTu.weight": "U", "FacTv.weight": "V", "head.weight": "kernel"}
AS_IS = {"head.bias": "bias", "FacTc": "C", "FacTp": "P"}


def _cores(depth: int) -> Iterator[tuple[str, int, slice, int]]:
    """Names of TT's matrices: (name, block, its cores, the axis along which they lie)."""
    for n in range(depth):
        for i, site in enumerate(("q", "k", "v", "proj")):
            yield f"blocks.{n}.attn.{site}_FacTs.weight", n, slice(i, i + 1), 0
        yield f"blocks.{n}.mlp.fc1_FacTs.weight", n, slice(4, 8), 0
        yield f"blocks.{n}.mlp.fc2_FacTs.weight", n, slice(8, 12), 1


def to_state_dict(trainable: dict) -> dict[str, torch.Tensor]:
    """Our factors (x @ U @ S @ V) and head as a state dict (nn.Linear stores out x in)."""
    ours = {**trainable["factors"], **trainable["head"]}
    arrays = {theirs: ours[name].T for theirs, name in TURNED.items()}
    arrays |= {theirs: ours[name] for theirs, name in AS_IS.items() if name in ours}
    for name, n, inside, axis in _cores(len(ours.get("S", ()))):
        arrays[name] = np.concatenate([core.T for core in ours["S"][n, inside]], axis)
    return {k: torch.from_numpy(np.array(v, np.float32)) for k, v in arrays.items()}


def from_state_dict(tensors: dict[str, torch.Tensor], depth: int) -> dict[str, np.ndarray]:
    """The inverse, flat: {"U", "V", "S" or "C" and "P", "kernel", "bias"}; gradients as well."""
    arrays = {k: v.detach().numpy() for k, v in tensors.items()}
    out = {name: arrays[theirs].T for theirs, name in TURNED.items()}
    out |= {name: arrays[theirs] for theirs, name in AS_IS.items() if theirs in arrays}
    if "C" in out:
        return out
    rank = len(arrays["FacTu.weight"])
    out["S"] = np.empty((depth, 12, rank, rank), arrays["FacTu.weight"].dtype)
    for name, n, inside, axis in _cores(depth):
        parts = np.split(arrays[name], inside.stop - inside.start, axis)
        out["S"][n, inside] = [part.T for part in parts]
    return out


def fact_vit(
    method: FacTTT | FacTTK, config: ViTConfig, base, trainable, drop: Drop = lambda z: z
) -> nn.Module:
    """timm's ViT with FacT, all numbers set; nothing but factors and head is trainable."""
    model = add_fact(timm_vit(config, base, trainable["head"]), method, drop)
    state = to_state_dict(trainable)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not any("FacT" in name or "head" in name for name in missing)
    return model


# --- Outputs, as stored/cases.py has them


def fact_outputs(method, config, base, trainable, images, labels, dtype=torch.float32) -> dict:
    """{"logits", "U", "V", ..., "kernel", "bias"}, the latter ones gradients of the mean loss."""
    model = fact_vit(method, config, base, trainable).to(dtype)
    return logits_and_gradients(model, images, labels)


def logits_and_gradients(model: nn.Module, images, labels) -> dict[str, np.ndarray]:
    logits = model(nchw(images).to(next(model.parameters()).dtype))
    F.cross_entropy(logits, torch.from_numpy(labels)).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"logits": logits.detach().numpy(), **from_state_dict(grads, len(model.blocks))}


def train(case, base, trainable, images, labels) -> dict[str, np.ndarray]:
    """torch.optim.AdamW under timm's scheduler, driven as FacT's code does: step *after* an epoch.

    {"losses" [steps], "U", "V", ..., "kernel", "bias"}, the latter ones after the last step.
    """
    model = fact_vit(case.method, case.config, base, trainable)
    trained = [p for p in model.parameters() if p.requires_grad]
    settings = dict(case.schedule)
    optimizer = torch.optim.AdamW(trained, settings["peak"], weight_decay=case.weight_decay)
    scheduler = timm_scheduler()(
        optimizer,
        t_initial=int(settings["epochs"]),
        warmup_t=int(settings["warmup_epochs"]),
        lr_min=settings["minimum"],
        warmup_lr_init=settings["warmup_start"],
    )
    mean, std = (np.array(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((images / 255 - mean) / std).astype(np.float32)
    losses = []
    for epoch, rows in enumerate(case.order()):
        for step in range(case.examples // case.batch_size):
            batch = rows[step * case.batch_size : (step + 1) * case.batch_size]
            targets = torch.from_numpy(labels[batch].astype(np.int64))
            loss = F.cross_entropy(model(nchw(pixels[batch])), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step(epoch)
    state = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {"losses": np.array(losses, np.float32), **from_state_dict(state, case.config.depth)}


def timm_scheduler() -> type:
    import_timm()
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler
