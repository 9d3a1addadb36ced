"""The adapted dense operation against plain autodiff."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxprs import equations

from fact_jax import LowRank
from fact_jax.backbone import dense
from fact_jax.backbone.dense import adapted_dense

RATE, KEY = 0.3, jax.random.key(5)


def random_case(d, f, widths, r, inner, seed, dtype="float32"):
    """(x, layers, pair): layers of these multiples of f columns, `inner` the rank of u or None."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape).astype("float32"))

    layers = [{"kernel": array(d, w * f), "bias": array(w * f)} for w in widths]
    rows = d if inner is None else inner
    u = None if inner is None else array(d, inner)
    pair = LowRank(array(rows, sum(widths) * r), array(r, f), u)
    return array(2, 3, d).astype(dtype), layers, pair


def joined(form):
    """The operation with these arguments, its outputs side by side."""
    return lambda *case: jnp.concatenate(adapted_dense(*case, **form), -1)


def plain(x, layers, pair):
    """The definition: dense increments, added and multiplied."""
    a = pair.a if pair.u is None else pair.u @ pair.a
    r = pair.b.shape[0]
    increment = jnp.concatenate([p @ pair.b for p in jnp.split(a, a.shape[1] // r, 1)], axis=1)
    kernel = jnp.concatenate([layer["kernel"] for layer in layers], axis=1) + increment
    bias = jnp.concatenate([layer["bias"] for layer in layers])
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype).reshape([1] * (x.ndim - 1) + [-1])


def plain_dropping(x, layers, pair):
    """The two paths with a mask on the rank-r values, drawn as the code draws it."""
    (d, r), f = x.shape[-1:] + pair.b.shape[:1], pair.b.shape[1]
    z = x @ (jnp.eye(d, dtype=x.dtype) if pair.u is None else pair.u.astype(x.dtype))
    z = z @ pair.a.astype(x.dtype)
    kept = jax.random.bernoulli(KEY, 1 - RATE, z.shape).astype(jnp.float32)
    z = (z.astype(jnp.float32) * kept / (1 - RATE)).astype(x.dtype)
    pieces = jnp.split(z, z.shape[-1] // r, axis=-1)
    increment = jnp.concatenate([piece @ pair.b.astype(x.dtype) for piece in pieces], axis=-1)
    kernel = jnp.concatenate([layer["kernel"] for layer in layers], axis=1).astype(x.dtype)
    bias = jnp.concatenate([layer["bias"] for layer in layers]).astype(x.dtype)
    assert increment.shape[-1] == kernel.shape[-1] == f * len(pieces)
    return x @ kernel + increment + bias.reshape([1] * (x.ndim - 1) + [-1])


MERGED, TWO_PATHS, DROPPING = {}, {"merged": False}, {"dropout_rate": RATE, "key": KEY}
FORMS = [(MERGED, plain), (TWO_PATHS, plain), (DROPPING, plain_dropping)]


def with_gradients(function, *case):
    """Value, and the gradients of a sum of its sines in the input, the layers and the factors."""

    def loss(*case):
        y = function(*case)
        return jnp.sin(y.astype(jnp.float32)).sum(), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*case)
    return y, gradients


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        a, e = (np.asarray(v, np.float64) for v in (a, e))
        assert np.abs(a - e).max() <= tolerance * max(np.abs(e).max(), 1e-3)


@settings(deadline=None, max_examples=6)
@given(
    d=st.integers(1, 9),
    f=st.integers(1, 7),
    r=st.integers(1, 5),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    inner=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_both_forms_are_the_definition_with_all_its_gradients(d, f, r, widths, inner, seed):
    """Gradients are the input's, the factors', and those of kernel and bias (some train them)."""
    case = random_case(d, f, widths, r, inner, seed)
    value, gradients = with_gradients(plain, *case)
    for form in (MERGED, TWO_PATHS):
        y, derived = with_gradients(joined(form), *case)
        close(y, value, 1e-5)
        close(derived, gradients, 1e-4)


def over_images(f):
    return jax.vmap(lambda x, layers, pair: f(x[None], layers, pair)[0], in_axes=(0, None, None))


def over_trials(f):
    def run(x, layers, pair):
        two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), pair)
        return jax.vmap(f, in_axes=(0, None, 0))(x, layers, two)

    return run


def over_steps(f):
    def run(x, layers, pair):
        return jax.lax.scan(lambda carry, row: (carry, f(row, layers, pair)), 0, x)[1]

    return run


@pytest.mark.parametrize(("form", "definition"), FORMS)
@pytest.mark.parametrize(
    ("transform", "inner"),
    [(jax.jit, None), *((t, 2) for t in (jax.checkpoint, over_images, over_trials, over_steps))],
)
def test_under_transformations(transform, inner, form, definition):
    """Values and all gradients, against autodiff with the same mask."""
    case = random_case(8, 5, (1, 2), 3, inner, 0)
    y, derived = with_gradients(transform(joined(form)), *case)
    # The mask of a mapped row or trial is its own shape's.
    value, gradients = with_gradients(transform(definition), *case)
    close(y, value, 1e-5)
    close(derived, gradients, 1e-4)
    assert (np.abs(y - plain(*case)).max() > 0.1) == (form is DROPPING)  # something is dropped


def test_apart_no_example_has_a_kernel_of_its_own():
    x, a, b = jnp.zeros((5, 7, 12)), jnp.zeros((5, 12, 2)), jnp.zeros((5, 2, 9))
    layers = [{"kernel": jnp.zeros((12, 9)), "bias": jnp.zeros(9)}]

    def kernels(merged):
        one = lambda x, a, b: adapted_dense(x, layers, LowRank(a, b), merged=merged)  # noqa: E731
        program = jax.make_jaxpr(jax.vmap(one))(x, a, b)
        shapes = [v.aval.shape for e in equations(program.jaxpr) for v in e.outvars]
        return shapes.count((5, 12, 9))

    assert kernels(merged=False) == 0 < kernels(merged=True)


@pytest.mark.parametrize(("form", "definition"), FORMS)
def test_in_bfloat16(form, definition):
    """bfloat16 products, float32 factors and gradients; as near as 8 bits allow."""
    half = random_case(32, 16, (1, 1, 1), 4, 4, 0, "bfloat16")
    full = (half[0].astype(jnp.float32), *half[1:])
    y = joined(form)(*half)
    assert y.dtype == jnp.bfloat16
    expected = definition(*full)
    assert np.abs(y.astype(jnp.float32) - expected).max() < 0.02 * np.abs(expected).max()

    def gradient(function, case):
        return jax.grad(lambda p: function(*case[:2], p).astype(jnp.float32).sum())(case[2])

    near = gradient(joined(form), half), gradient(definition, full)
    for actual, expected in zip(*map(jax.tree.leaves, near), strict=True):
        assert actual.dtype == jnp.float32
        assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("dropout_rate", [None, 0.1])
def test_gradients_transpose_no_activations(monkeypatch, dropout_rate):
    """A sum over two axes of tokens, or a wide factor in front, had them transposed on the CPU."""
    b, n, d, f, r = 2, 97, 96, 80, 8
    _, layers, pair = random_case(d, f, (1, 3), r, 24, seed=0)
    x = jnp.ones((b, n, d))

    def compiled():
        def loss(pair, x):
            outputs = adapted_dense(jnp.sin(x), layers, pair, dropout_rate, KEY)
            return sum((y**3).sum() for y in outputs)

        text = jax.jit(jax.grad(loss, (0, 1))).lower(pair, x).compile().as_text()
        return [line for line in text.splitlines() if re.search(turned, line)]

    wide = "|".join(map(str, (d, f, 3 * f)))
    turned = rf"= f32\[({wide}),({b},{n}|{b * n}|{b},{n},3|{3 * b * n})\]"
    assert not compiled()
    monkeypatch.setattr(dense, "_times", jnp.matmul)
    assert compiled()  # as autodiff writes it
