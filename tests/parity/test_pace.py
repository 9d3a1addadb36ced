"""PACE's loss of an adapted linear layer, against the formula of the released code in PyTorch.

MaxwellYaoNi/PACE, Vision/pace/pace_ops.py: ``base(x) + noise * adapter(x)``, and the sum over
classes of the squared difference of two passes, as a mean over the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from fact_jax.backbone.adaptation import LowRank
from fact_jax.backbone.dense import adapted_dense, increments
from fact_jax.backbone.noise import IncrementNoise
from fact_jax.training.consistency import difference

B, N, D, E, R, WEIGHT, SIGMA = 4, 5, 7, 6, 2, 0.8, 1.2


def drawn(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, W, BIAS = drawn(B, N, D, seed=0), drawn(D, E, seed=1), drawn(E, seed=2)
FACTORS = {"a": drawn(D, R, seed=3), "b": drawn(R, E, seed=4)}
TARGETS = np.array([0, 5, 2, 2])
KEYS = jax.random.split(jax.random.key(0), 2)


def ours(factors):
    def logits(key):
        layer, pair = {"kernel": W, "bias": BIAS}, LowRank(**factors)
        (frozen,), (added,) = adapted_dense(X, [layer]), increments(X, [E], pair)
        return (frozen + IncrementNoise(key, SIGMA).times(added)).mean(axis=1)

    one, two = map(logits, KEYS)
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(one), TARGETS[:, None], axis=1).mean()
    return entropy + WEIGHT * difference(one, two, np.ones(B, bool), E)


def by_formula(factors):
    def logits(key):
        z = np.asarray(IncrementNoise(key, SIGMA).times(jnp.ones((B, 1, E))))
        x = torch.tensor(X)
        base = F.linear(x, torch.tensor(W.T), torch.tensor(BIAS))
        adapter = F.linear(F.linear(x, factors["a"].T), factors["b"].T)
        return (base + adapter * torch.tensor(z)).mean(dim=1)

    one, two = map(logits, KEYS)
    consistency = (one - two).square().sum(dim=-1).mean()
    return F.cross_entropy(one, torch.tensor(TARGETS)) + WEIGHT * consistency


def test_the_loss_and_its_gradient_are_those_of_the_released_formula(compare):
    factors = {name: torch.tensor(x, requires_grad=True) for name, x in FACTORS.items()}
    expected = by_formula(factors)
    expected.backward()
    loss, grads = jax.value_and_grad(ours)(jax.tree.map(jnp.asarray, FACTORS))
    gradients = {name: x.grad.numpy() for name, x in factors.items()}
    compare({"loss": loss, **grads}, {"loss": expected.detach().numpy(), **gradients}, 1e-5)
