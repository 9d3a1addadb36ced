"""The peers of `step.py` in PyTorch, on a ViT written as timm 0.4's.

`fact`: FacT-TT in the structure of the released code (every site projects its own input through U,
V acts after the dropout, nothing is merged). `full`: every parameter trained. `lora`: Hugging Face
peft's LoRA of rank 8 on query and value, on transformers' ViT with its own fast attention.
"""

import argparse
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import CLASSES
from benchmarks.speed.systems import System
from benchmarks.speed.timing import WARM_UP, measure, peak_memory


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x)
        if hasattr(self, "fact"):
            qkv = qkv + torch.cat([self.fact(site, x) for site in ("q", "k", "v")], dim=-1)
        q, k, v = qkv.reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = (weights @ v).transpose(1, 2).reshape(b, n, d)
        out = self.proj(x)
        return out + self.fact("proj", x) if hasattr(self, "fact") else out


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        fact = getattr(self, "fact", None)
        h = self.fc1(x)
        h = F.gelu(h if fact is None else h + fact("fc1", x))
        out = self.fc2(h)
        return out if fact is None else out + fact("fc2", h)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn, self.mlp, self.drop_path = Attention(dim, heads), Mlp(dim), drop_path

    def _drop(self, x):
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x / keep * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep)

    def forward(self, x):
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """ViT-B/16 at 224 pixels; class-token logits."""

    def __init__(self, classes: int, drop_path: float, dim=768, depth=12, heads=12, patch=16):
        super().__init__()
        self.dim = dim
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(0.02 * torch.randn(1, (224 // patch) ** 2 + 1, dim))
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.Sequential(*(Block(dim, heads, rate) for rate in rates))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class Fact(nn.Module):
    """The increments of one block's half: U and V shared, cores its own."""

    def __init__(self, u: nn.Linear, v: nn.Linear, sites: dict[str, tuple[int, int]], rank: int):
        super().__init__()
        self.shared, self.rank, self.drop = (u, v), rank, nn.Dropout(0.1)
        self.cores = nn.ModuleDict(
            {s: nn.Linear(i * rank, o * rank, bias=False) for s, (i, o) in sites.items()}
        )

    def forward(self, site, x):
        u, v = self.shared
        b, n, d = x.shape
        pieces = d // u.in_features
        z = u(x.reshape(b, n, pieces, -1)).reshape(b, n, -1) if pieces > 1 else u(x)
        z = self.drop(self.cores[site](z))
        return v(z.reshape(b, n, -1, self.rank)).reshape(b, n, -1)


def add_fact(model: ViT, rank: int, dropout: float) -> list[nn.Parameter]:
    """FacT-TT on all blocks; the parameters to train."""
    model.requires_grad_(False)
    u, v = nn.Linear(model.dim, rank, bias=False), nn.Linear(rank, model.dim, bias=False)
    model.fact_u, model.fact_v = u, v
    for block in model.blocks:
        block.attn.fact = Fact(u, v, dict.fromkeys(("q", "k", "v", "proj"), (1, 1)), rank)
        block.mlp.fact = Fact(u, v, {"fc1": (1, 4), "fc2": (4, 1)}, rank)
        for half in (block.attn, block.mlp):
            half.fact.drop.p = dropout
    model.head.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def prepare_torchvision() -> None:
    """Lets a torchvision from PyPI be imported beside a CPU build of PyTorch.

    It is built for CUDA, and its import stops at the first operator that is not registered.
    transformers and timm import it and use none of them.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision  # noqa: F401


def lora(classes: int) -> nn.Module:
    """transformers' ViT-B/16 with peft's LoRA, rank 8 on query and value."""
    prepare_torchvision()
    import peft
    import transformers

    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=classes))
    names = {n.rsplit(".", 1)[-1] for n, _ in model.named_modules()}
    targets = ["q_proj", "v_proj"] if "q_proj" in names else ["query", "value"]
    settings = peft.LoraConfig(r=8, target_modules=targets, modules_to_save=["classifier"])
    wrapped = peft.get_peft_model(model, settings)
    return wrapped


def build(name: str, rate: float):
    """Builds a peer: logits of images [b, 3, y, x], parameters to train, the module."""
    if name == "peft LoRA 8":
        module = lora(CLASSES)
        trained = [p for p in module.parameters() if p.requires_grad]
        return lambda x: module(pixel_values=x).logits, trained, module
    module = ViT(CLASSES, rate)
    if name == "full":
        return module, list(module.parameters()), module
    return module, add_fact(module, 16, rate), module


def run(system: System, a: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of a peer's step, or of its evaluation."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits, trained, module = build(system.program, system.rate or 0.0)
    evaluates = system.program == "evaluation"
    module.to(device).train(not evaluates)
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=1e-4)
    x = torch.randn(a.batch, 3, 224, 224, device=device)
    y = torch.arange(a.batch, device=device) % CLASSES
    half = torch.autocast(device, torch.bfloat16, enabled=a.dtype == "bfloat16")

    def step():
        if evaluates:
            with torch.no_grad(), half:
                logits(x).argmax(-1)
        else:
            with half:
                loss = F.cross_entropy(logits(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step()
    if device == "cpu":
        peak_memory(reset=True)
    seconds = measure(step, a.steps, a.steps)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
    return {"seconds": seconds, "peak_bytes": peak, "torch": torch.__version__}
