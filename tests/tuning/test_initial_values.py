"""Sizes and initial values of every method, against the shapes and the code of its source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import named

from fact_jax import UserError, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import (
    SSF,
    Adapter,
    AdaptFormer,
    BitFit,
    Combination,
    Convpass,
    FacTCP,
    FacTShared,
    FacTTK,
    FacTTT,
    Full,
    LoRA,
    RepAdapter,
    VPTDeep,
    VPTShallow,
    count_parameters,
)

VIT_B16 = get_variant("vit_b16")


NUMBERS = [  # what no config has; test_configs.py has the others
    (Adapter(8, "houlsby"), 2 * 156_768),
    (AdaptFormer(8, layer_norm=True), 156_768 + 12 * 2 * 768),
    (LoRA(8, sites="q,k,v,o,fc1,fc2"), 12 * 8 * (4 * 2 * 768 + 2 * 5 * 768)),
    (FacTTK(8), 13_952),
    (FacTShared(4, share="kind"), 2 * 12 * 768 * 4 + 144 * 16),
    (Combination((("fact", FacTTT(16)), ("vpt", VPTDeep(10)))), 61_440 + 92_160),
]


@pytest.mark.parametrize(("method", "number"), NUMBERS, ids=[str(m) for m, _ in NUMBERS])
def test_parameter_counts_on_vit_b16(method, number):
    base = jax.eval_shape(lambda: init_base(VIT_B16, jax.random.key(0)))
    factors = jax.eval_shape(lambda b: method.init(jax.random.key(0), VIT_B16, b), base)
    assert count_parameters(factors) == number
    assert all(leaf.dtype == jnp.float32 for leaf in factors.values())


def moments(x, deviation, mean=0.0):
    """Within five deviations of what so many numbers have."""
    assert np.std(x) == pytest.approx(deviation, rel=5 * (2 * x.size) ** -0.5)
    assert abs(np.mean(x) - mean) < 5 * deviation * x.size**-0.5


def uniform(x, bound):
    moments(x, bound / 3**0.5)
    assert 0.98 * bound < np.abs(x).max() <= bound


def normal(x, deviation, mean=0.0):
    moments(x, deviation, mean)
    assert np.abs(x - mean).max() > 2.1 * deviation  # neither uniform nor cut at two


def cut_normal(x, deviation):
    moments(x, 0.8796 * deviation)
    assert 1.98 * deviation < np.abs(x).max() <= 2 * deviation


def constant(x, value):
    np.testing.assert_array_equal(x, np.broadcast_to(value, x.shape))


def xavier(rows, columns):
    return uniform, (6 / (rows + columns)) ** 0.5


IDENTITY = np.zeros((3, 3, 8, 8)) + np.eye(8) * (np.arange(9) == 4).reshape(3, 3, 1, 1)


# Of ViT-B/16, by the ends of the factors' names: (check, numbers).
INITIAL = [
    (
        Adapter(8),
        {
            "_down": (normal, 0.02),
            "_up": (normal, 0.02),
            "_bias": (constant, 0),
        },
    ),
    (
        Adapter(8, "houlsby"),
        {
            "_down": (cut_normal, 0.01),
            "_up": (cut_normal, 0.01),
            "_bias": (constant, 0),
        },
    ),
    (
        AdaptFormer(8, layer_norm=True),
        {
            "down": (uniform, 768**-0.5),
            "up": (constant, 0),
            "down_bias": (constant, 0),
            "up_bias": (constant, 0),
            "norm_scale": (constant, 1),
            "norm_bias": (constant, 0),
        },
    ),
    (AdaptFormer(8, form="petl"), {"down": (uniform, 768**-0.5), "up": (constant, 0)}),
    (
        LoRA(8, sites="q,fc1,fc2"),
        {
            "A_q": (uniform, 768**-0.5),
            "A_fc1": (uniform, 768**-0.5),
            "A_fc2": (uniform, 3072**-0.5),
            "B_q": (constant, 0),
            "B_fc1": (constant, 0),
            "B_fc2": (constant, 0),
        },
    ),
    (
        LoRA(8, sites="q,k,v", shared_input=True),
        {
            "A": (normal, 0.02),
            "B_q": (normal, 0.02),
            "B_k": (normal, 0.02),
            "B_v": (normal, 0.02),
        },
    ),
    (SSF(), {"_scale": (normal, 0.02, 1.0), "_shift": (normal, 0.02)}),
    (
        Convpass(8),
        {
            "_down": xavier(768, 8),
            "_up": (constant, 0),
            "_conv": (constant, IDENTITY),
            "_bias": (constant, 0),
        },
    ),
    (
        Convpass(8, xavier=True),
        {
            "_down": xavier(768, 8),
            "_up": (constant, 0),
            "_conv": xavier(9 * 8, 9 * 8),
            "_bias": (constant, 0),
        },
    ),
    (RepAdapter(8), {"_down": xavier(768, 8), "_up": (constant, 0), "_bias": (constant, 0)}),
    (VPTShallow(50), {"tokens": xavier(3 * 16**2, 768)}),
    (VPTDeep(10), {"tokens": xavier(3 * 16**2, 768)}),
    (FacTCP(32), {"U": (uniform, 768**-0.5), "C": (uniform, 1.0), "V": (constant, 0)}),
    (FacTShared(4), {"U": (uniform, 768**-0.5), "S": (uniform, 0.5), "V": (constant, 0)}),
]


@pytest.mark.parametrize(("method", "expected"), INITIAL, ids=[str(m) for m, _ in INITIAL])
def test_initial_values_are_the_source_s(method, expected):
    factors = method.init(jax.random.key(3), VIT_B16)
    for name, x in factors.items():
        (end,) = [e for e in sorted(expected, key=len, reverse=True) if name.endswith(e)][:1]
        check, *numbers = expected[end]
        check(np.asarray(x), *numbers)
        if check is not constant:  # no two of a factor's blocks are the same draw
            assert len(x) == 1 or len({part.tobytes() for part in np.asarray(x)}) == len(x)
    drawn = [x for x in factors.values() if np.ptp(x) > 0 and np.size(np.unique(x[0])) > 2]
    assert len({np.asarray(x).tobytes() for x in drawn}) == len(drawn)  # nor two factors


@pytest.mark.parametrize("method", [Full(), BitFit()])
def test_weights_begin_at_the_base_s(method, small_vit):
    model, base = small_vit
    factors = method.init(jax.random.key(0), model.config, base)
    leaves = named(base)
    assert factors.keys() == {n for n in leaves if n.endswith("/bias") or method == Full()}
    for name, x in factors.items():
        np.testing.assert_array_equal(x, leaves[name])
    with pytest.raises(UserError, match="give init\\(\\) the base"):
        method.init(jax.random.key(0), model.config)
