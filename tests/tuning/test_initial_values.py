"""Sizes and initial values of every method, against the shapes and the code of its source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import named

from fact_jax import UserError, get_variant, tuning
from fact_jax.backbone.vit import init_base

VIT_B16 = get_variant("vit_b16")


NUMBERS = [  # what no config has; test_configs.py has the others
    (tuning.MetaTTTasks(16), 30_720 + 256),
    (tuning.MetaTTTasks(16, heads=True), 22_528 + 256),
    (tuning.Adapter(8, "houlsby"), 2 * 156_768),
    (tuning.AdaptFormer(8, layer_norm=True), 156_768 + 12 * 2 * 768),
    (tuning.LoRA(8, sites="q,k,v,o,fc1,fc2"), 12 * 8 * (4 * 2 * 768 + 2 * 5 * 768)),
    (tuning.FacTTK(8), 13_952),
    (tuning.FacTShared(4, share="kind"), 2 * 12 * 768 * 4 + 144 * 16),
    (
        tuning.Combination((("fact", tuning.FacTTT(16)), ("vpt", tuning.VPTDeep(10)))),
        61_440 + 92_160,
    ),
]


@pytest.mark.parametrize(("method", "number"), NUMBERS, ids=[str(m) for m, _ in NUMBERS])
def test_parameter_counts_on_vit_b16(method, number):
    base = jax.eval_shape(lambda: init_base(VIT_B16, jax.random.key(0)))
    factors = jax.eval_shape(lambda b: method.init(jax.random.key(0), VIT_B16, b), base)
    assert tuning.count_parameters(factors) == number
    assert all(leaf.dtype == jnp.float32 for leaf in factors.values())


def moments(x, deviation, mean=0.0):
    """Within five deviations of what so many numbers have."""
    assert np.std(x) == pytest.approx(deviation, rel=5 * (2 * x.size) ** -0.5)
    assert abs(np.mean(x) - mean) < 5 * deviation * x.size**-0.5


def uniform(x, bound):
    moments(x, bound / 3**0.5)
    assert 0.98 * bound < np.abs(x).max() <= bound


def uniform_tt(x):
    """q, k, v, o and fc1 have a fan-in of r = 16, fc2 of 4 r."""
    uniform(x[:, :8], 16**-0.5)
    uniform(x[:, 8:], 64**-0.5)


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


def xavier_normal(x, rows, columns):
    assert x.shape == (rows, columns)
    cut_normal(x, (2 / (rows + columns)) ** 0.5 / 0.8796)


def orthogonal(x):
    """Columns, or rows if there are fewer, of length one and at right angles."""
    product = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    np.testing.assert_allclose(product, np.eye(min(x.shape)), atol=1e-5)


IDENTITY = np.zeros((3, 3, 8, 8)) + np.eye(8) * (np.arange(9) == 4).reshape(3, 3, 1, 1)


def bottleneck_of(down, up, **more):
    """Factors of a bottleneck, whose biases begin at zero."""
    return {"down": down, "up": up, "_bias": (constant, 0), **more}


FAN_IN, ZERO, NORMAL = (uniform, 768**-0.5), (constant, 0), (normal, 0.02)
# Of ViT-B/16, by the ends of the factors' names: (check, numbers).
INITIAL = [
    (tuning.Adapter(8), bottleneck_of(NORMAL, NORMAL)),
    (tuning.Adapter(8, "houlsby"), bottleneck_of((cut_normal, 0.01), (cut_normal, 0.01))),
    (
        tuning.AdapterPlus(8),
        bottleneck_of((cut_normal, 0.01), (cut_normal, 0.01), channel_scale=(constant, 1)),
    ),
    (tuning.AdaptFormer(8, layer_norm=True), bottleneck_of(FAN_IN, ZERO, norm_scale=(constant, 1))),
    (tuning.AdaptFormer(8, form="petl"), {"down": FAN_IN, "up": ZERO}),
    (
        tuning.LoRA(8, sites="q,fc1,fc2"),
        {"A_q": FAN_IN, "A_fc1": FAN_IN, "A_fc2": (uniform, 3072**-0.5)}
        | dict.fromkeys(("B_q", "B_fc1", "B_fc2"), ZERO),
    ),
    (
        tuning.LoRA(8, sites="q,k,v", shared_input=True),
        dict.fromkeys(("A", "B_q", "B_k", "B_v"), NORMAL),
    ),
    (tuning.SSF(), {"_scale": (normal, 0.02, 1.0), "_shift": NORMAL}),
    (tuning.Convpass(8), bottleneck_of(xavier(768, 8), ZERO, conv=(constant, IDENTITY))),
    (
        tuning.Convpass(8, xavier=True),
        bottleneck_of(xavier(768, 8), ZERO, conv=xavier(9 * 8, 9 * 8)),
    ),
    (tuning.RepAdapter(8), bottleneck_of(xavier(768, 8), ZERO)),
    (tuning.VPTShallow(50), {"tokens": xavier(3 * 16**2, 768)}),
    (tuning.VPTDeep(10), {"tokens": xavier(3 * 16**2, 768)}),
    (tuning.FacTTT(16), {"U": FAN_IN, "S": (uniform_tt,), "V": ZERO}),
    (
        tuning.FacTTK(32),
        {"U": FAN_IN, "C": (uniform, 3**0.5 / 32), "P": xavier(32, 144), "V": ZERO},
    ),
    (tuning.FacTCP(32), {"U": FAN_IN, "C": (uniform, 1.0), "V": ZERO}),
    (
        tuning.MetaTT(16),
        {"U": FAN_IN, "G": (constant, np.eye(16)), "M": (uniform, 0.25), "V": ZERO},
    ),
    (
        tuning.MetaTTHeads(16),
        {"U": FAN_IN, "G": (constant, np.eye(16)), "M": (uniform, 0.25)}
        | {"H": (constant, np.eye(16)), "V": ZERO},
    ),
    (
        tuning.MetaTTTasks(16),
        {"U": FAN_IN, "G": (constant, np.eye(16)), "M": (uniform, 0.25)}
        | {"T": (constant, np.eye(16)), "V": ZERO},
    ),
    (
        tuning.CaRA(16),
        {"A1": (xavier_normal, 36, 16), "P1": (xavier_normal, 108, 16)}
        | {"A2": ZERO, "P2": ZERO, "A3": (orthogonal,), "A4": (orthogonal,), "P3": (orthogonal,)}
        | {"R1": (constant, 1), "R2": (constant, 1)}
        | dict.fromkeys(("bias_o", "bias_fc1", "bias_fc2"), ZERO),
    ),
    (
        tuning.LoRTA(16),
        {"A": FAN_IN, "B": ZERO, **dict.fromkeys("HGM", (uniform, 1.0))},
    ),
    (
        tuning.EFFT(16),
        {"U": FAN_IN, "C": (uniform, 0.25), "V": ZERO}
        | {"U_mlp": FAN_IN, "C_mlp": (uniform, 0.25), "V_mlp": ZERO},
    ),
    (tuning.UniLoRA(500), {"theta": (uniform, 0.02)}),
    (tuning.FacTShared(4), {"U": FAN_IN, "S": (uniform, 0.5), "V": ZERO}),
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


@pytest.mark.parametrize("method", [tuning.Full(), tuning.BitFit()])
def test_weights_begin_at_the_base_s(method, small_vit):
    model, base = small_vit
    factors = method.init(jax.random.key(0), model.config, base)
    leaves = named(base)
    assert factors.keys() == {n for n in leaves if n.endswith("/bias") or method == tuning.Full()}
    for name, x in factors.items():
        np.testing.assert_array_equal(x, leaves[name])
    with pytest.raises(UserError, match="give init\\(\\) the base"):
        method.init(jax.random.key(0), model.config)
