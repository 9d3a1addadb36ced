"""NOAH: subnets and the masked supernet beside a PyTorch net that is written from its source.

The source is ZhangYuanhan-AI/NOAH, model/supernet_vision_transformer_timm.py (the net that its
training makes) and model/module/adapter_super.py; and timm's AdamW without decay on vectors.
"""

import jax
import numpy as np
import pytest
import torch
from stored.cases import SMALL, Draw, random_base, random_head
from torch import nn
from torch.nn import functional as F
from torch_models import nchw, timm_vit

from fact_jax import ViT, features
from fact_jax.training.recipe import Recipe
from fact_jax.tuning import NOAH

WIDTHS = (1, 2, 5)
WIDEST, BLOCKS = max(WIDTHS), SMALL.depth


class Modules(nn.Module):
    """The three modules of a block at full width; `widths` of them take part.

    Frozen block: timm's. Tokens are class, patches, prompts, as there.
    """

    def __init__(self, block: nn.Module, width: int):
        super().__init__()
        self.block = block
        self.tokens = nn.Parameter(torch.empty(WIDEST, width))
        self.lora_a = nn.Linear(width, WIDEST, bias=False)
        self.lora_b = nn.Linear(WIDEST, 3 * width, bias=False)
        self.down = nn.Linear(width, WIDEST)
        self.up = nn.Linear(WIDEST, width)

    def attention(self, x: torch.Tensor, rank: int) -> torch.Tensor:
        attn = self.block.attn
        images, tokens, width = x.shape
        qkv = attn.qkv(x)
        if rank:
            hidden = F.linear(x, self.lora_a.weight[:rank])
            qkv = qkv + F.linear(hidden, self.lora_b.weight[:, :rank])
        q, k, v = (
            part.view(images, tokens, attn.num_heads, -1).transpose(1, 2)
            for part in qkv.split(width, dim=-1)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return attn.proj((weights @ v).transpose(1, 2).reshape(x.shape))

    def adapter(self, z: torch.Tensor, width: int) -> torch.Tensor:
        if not width:
            return z
        hidden = F.linear(z, self.down.weight[:width], self.down.bias[:width])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return z + F.linear(hidden, self.up.weight[:, :width], self.up.bias)

    def forward(self, x: torch.Tensor, before: int, prompts: int, rank: int, width: int):
        """`before` prompts of the last block are at the end of x, to be replaced."""
        if prompts:
            own = self.tokens[:prompts].expand(len(x), -1, -1)
            x = torch.cat([x[:, : x.shape[1] - before], own], dim=1)
        x = x + self.attention(self.block.norm1(x), rank)
        return x + self.adapter(self.block.mlp(self.block.norm2(x)), width)


class Net(nn.Module):
    def __init__(self, base, factors, idle):
        super().__init__()
        head = random_head(SMALL.width, 2, 0)
        self.vit = timm_vit(SMALL, base, head).requires_grad_(False)
        self.blocks = nn.ModuleList(Modules(block, SMALL.width) for block in self.vit.blocks)
        self.idle = nn.Parameter(torch.from_numpy(idle))  # at the input, and never read
        for i, block in enumerate(self.blocks):
            own = {name: torch.from_numpy(np.array(value[i])) for name, value in factors.items()}
            for parameter, name in self.names(block):
                value = own[name]
                parameter.data = value.T.clone() if self.turned(name) else value.clone()

    @staticmethod
    def names(block):
        yield from (
            (block.tokens, "prompts"),
            (block.lora_a.weight, "lora_A"),
            (block.lora_b.weight, "lora_B"),
            (block.down.weight, "down"),
            (block.down.bias, "down_bias"),
            (block.up.weight, "up"),
            (block.up.bias, "up_bias"),
        )

    @staticmethod
    def turned(name):
        return name in ("lora_A", "lora_B", "down", "up")

    def forward(self, images, choice):
        prompts, ranks, widths = choice
        x = self.vit.patch_embed(images)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + self.vit.pos_embed
        if prompts[0]:
            x = torch.cat([x, self.idle[: prompts[0]].expand(len(x), -1, -1)], dim=1)
        for i, block in enumerate(self.blocks):
            before = prompts[i - 1] if i else prompts[0]
            x = block(x, before, prompts[i], ranks[i], widths[i])
        return self.vit.norm(x)[:, 0]

    def grads(self):
        """Factors by our names, stacked over the blocks."""
        stacked = {}
        for block in self.blocks:
            for parameter, name in self.names(block):
                grad = parameter.grad
                grad = torch.zeros_like(parameter) if grad is None else grad
                grad = grad.T if self.turned(name) else grad
                stacked.setdefault(name, []).append(grad.numpy())
        return {name: np.stack(parts) for name, parts in stacked.items()}


def inputs():
    draw = Draw(5)
    structs = jax.eval_shape(lambda: NOAH(WIDTHS).init(jax.random.key(0), SMALL))
    std = {"prompts": 1.0, "lora_A": 0.2, "lora_B": 0.2, "up_bias": 0.3}
    factors = {name: draw(s.shape, std.get(name, 0.3)) for name, s in structs.items()}
    images = draw((3, SMALL.image_size, SMALL.image_size, 3))
    return random_base(SMALL, 4), factors, images, draw((3, SMALL.width)), draw((WIDEST, 48))


# As they are sampled: a family's first blocks, and 0 for the rest; which is all that NOAH's own
# net is made for. Of sampled ones two.
CHOICES = [
    ((5, 5, 5), (5, 5, 5), (5, 5, 5)),
    ((2, 0, 0), (1, 5, 0), (5, 1, 2)),
    ((5, 1, 0), (2, 0, 0), (1, 0, 0)),
    *(
        tuple(map(tuple, np.asarray(NOAH(WIDTHS).sample(jax.random.key(i), SMALL)).tolist()))
        for i in range(2)
    ),
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("form", ["subnet", "supernet"])
def test_features_and_gradients(choice, form, compare):
    base, factors, images, projection, idle = inputs()
    net = Net(base, factors, idle)
    x = net(nchw(images), choice)
    (x * torch.from_numpy(projection)).sum().backward()
    expected = net.grads()
    assert net.idle.grad is None or not net.idle.grad.any()  # why we leave them out

    method, own, more = NOAH(WIDTHS), factors, {"choice": np.array(choice)}
    if form == "subnet":
        method, own = method.subnet(factors, choice)
        more, expected = {}, {k: np.asarray(v) for k, v in method.cut(expected).items()}

    @jax.jit
    def run(own):
        def project(own):
            y = features(ViT(SMALL), base, images, method.adaptation(own, SMALL, **more))
            return (y * projection).sum(), y

        return jax.grad(project, has_aux=True)(own)

    grads, y = run(own)
    compare({"features": y, **grads}, {"features": x.detach().numpy(), **expected}, 1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_are_pytorchs_with_vectors_spared(optimizer, compare):
    """timm's factory makes two groups: weights, and, without decay, what has one dimension."""
    shapes = {"A": (6, 3), "fc1_bias": (5,), "norm1_scale": (5,), "B": (3, 6)}
    draw = Draw(1)
    values = {name: draw(shape) for name, shape in shapes.items()}
    gradients = [{name: draw(shape) for name, shape in shapes.items()} for _ in range(20)]
    tensors = {name: nn.Parameter(torch.from_numpy(v.copy())) for name, v in values.items()}
    groups = [
        {"params": [t for t in tensors.values() if t.ndim == 1], "weight_decay": 0.0},
        {"params": [t for t in tensors.values() if t.ndim > 1], "weight_decay": 0.2},
    ]
    if optimizer == "sgd":
        torch_optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    else:
        torch_optimizer = torch.optim.AdamW(groups, lr=0.05)
    recipe = Recipe(optimizer, decay_vectors=False)
    moments = recipe.init(values)
    for gradient in gradients:
        values, moments = recipe.update(values, gradient, moments, 0.05, 0.2)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradient[name])
        torch_optimizer.step()
    compare(values, {name: t.detach().numpy() for name, t in tensors.items()}, 1e-5)
