"""NOAH: subnets and the masked supernet beside a PyTorch net that is written from its source.

The source is ZhangYuanhan-AI/NOAH, model/supernet_vision_transformer_timm.py (the net that its
training makes) and model/module/adapter_super.py; and timm's AdamW without decay on vectors.
"""

import jax
import numpy as np
import pytest
import torch
from stored.cases import SMALL, Draw, random_base
from torch import Tensor, nn
from torch_methods import TorchViT, linear, quick_gelu

from fact_jax import ViT, features
from fact_jax.training.recipe import Recipe
from fact_jax.tuning import NOAH

WIDTHS = (1, 2, 5)


class Net(TorchViT):
    """A choice of NOAH's modules in every block. Tokens are class, patches, prompts, as there."""

    def __init__(self, base, factors, idle, choice):
        super().__init__(None, SMALL, base, factors)
        self.prompts, self.ranks, self.widths = choice
        self.idle = torch.from_numpy(idle).requires_grad_()  # at the input, and never read

    def blocks(self, x: Tensor) -> Tensor:
        before = self.prompts[0]
        x = torch.cat([x, self.idle[:before].expand(len(x), -1, -1)], dim=1)
        for i, count in enumerate(self.prompts):
            if count:  # replace those of the last block, at the end of x
                new = self.factor("prompts", i)[:count].expand(len(x), -1, -1)
                x = torch.cat([x[:, : x.shape[1] - before], new], dim=1)
            x, before = self.block(x, i), count
        return x

    def qkv(self, x: Tensor, i: int) -> list[Tensor]:
        rank = self.ranks[i]
        low = linear(x, self.factor("lora_A", i)[:, :rank])
        change = linear(low, self.factor("lora_B", i)[:rank])
        return [y + d for y, d in zip(super().qkv(x, i), change.chunk(3, dim=-1), strict=True)]

    def mlp_branch(self, x: Tensor, i: int) -> Tensor:
        z, width = super().mlp_branch(x, i), self.widths[i]
        if not width:
            return z
        down, bias = self.factor("down", i)[:, :width], self.factor("down_bias", i)[:width]
        hidden = quick_gelu(linear(z, down, bias))
        return z + linear(hidden, self.factor("up", i)[:width], self.factor("up_bias", i))

    def grads(self) -> dict[str, np.ndarray]:
        parts = {name: (x, x.grad) for name, x in self.factors.items()}
        return {n: np.zeros(x.shape) if g is None else g.numpy() for n, (x, g) in parts.items()}


def inputs():
    draw = Draw(5)
    structs = jax.eval_shape(lambda: NOAH(WIDTHS).init(jax.random.key(0), SMALL))
    std = {"prompts": 1.0, "lora_A": 0.2, "lora_B": 0.2, "up_bias": 0.3}
    factors = {name: draw(s.shape, std.get(name, 0.3)) for name, s in structs.items()}
    images = draw((3, SMALL.image_size, SMALL.image_size, 3))
    return random_base(SMALL, 4), factors, images, draw((3, SMALL.width)), draw((max(WIDTHS), 48))


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
    net = Net(base, factors, idle, choice)
    x = net(images)
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
