"""Laws of rounding and conversion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CONFIG, dense, random_factors, random_increments
from tried_methods import ALL

from fact_jax import Combination, FacTTT, LoRA, UserError
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.rounding import NAMES, full_rank, round_to, round_within
from fact_jax.algebra.tucker import tail
from fact_jax.backbone.merging import merge
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import METHODS
from fact_jax.tuning.method import Method

LOW_RANK = ["lora_qv", "lora_all", "lora_noah", "fact_tt", "fact_tk", "fact_cp"]
LOW_RANK += ["fact_shared_layer", "fact_shared_kind"]


@pytest.mark.parametrize("name", [*LOW_RANK, "sum"])
def test_increments_are_what_merging_adds(name: str):
    parts = ("lora", ALL["lora_qv"]), ("fact_tt", ALL["fact_tt"])
    method: Method = Combination(parts) if name == "sum" else ALL[name]
    factors = random_factors(method)
    base = jax.tree.map(np.zeros_like, init_base(CONFIG, jax.random.key(0)))
    blocks = merge(base, method.adaptation(factors, CONFIG))["Transformer"]["encoderblock"]
    attention, mlp = blocks["MultiHeadDotProductAttention_1"], blocks["MlpBlock_3"]
    layers = [attention[name] for name in ("query", "key", "value", "out")]
    kernels = [layer["kernel"] for layer in layers]
    kernels += np.split(mlp["Dense_0"]["kernel"], 2, axis=2)
    kernels += np.split(mlp["Dense_1"]["kernel"], 2, axis=1)
    expected = np.stack(kernels, axis=1).reshape(-1, 12, 12)
    np.testing.assert_allclose(
        dense(Increments.of(method, factors, CONFIG)), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("value", "scale"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, 3e38)])
def test_increments_that_are_not_finite_are_refused(value: float, scale: float):
    method = FacTTT(2, scale)
    factors = {name: 10 * np.ones_like(x) for name, x in random_factors(method).items()}
    factors["U"][3, 0] = value
    with pytest.raises(UserError, match="not finite: a factor is not, or its scale is too large"):
        Increments.of(method, jax.tree.map(jnp.asarray, factors), CONFIG)


@settings(max_examples=15, deadline=None)
@given(
    source=st.sampled_from(["lora_all", "fact_tk", "fact_shared_kind"]),
    rank=st.sampled_from([1, 3, 8]),
    seed=st.integers(0, 99),
)
def test_tensor_train_rounding_keeps_its_bound_and_is_near_the_best(
    source: str, rank: int, seed: int
):
    increments = random_increments(ALL[source], seed)
    joint = Joint.of(increments)
    rounded = round_to(FacTTT(rank, 2.0), increments, CONFIG)
    assert rounded.bound is not None
    assert rounded.error <= rounded.bound + 1e-6
    # No factors of this rank are nearer than the larger of both unfoldings' tails.
    lower = max(tail(joint.left_values, rank), tail(joint.right_values, rank)) / joint.norm
    assert lower - 1e-6 <= rounded.error <= 2**0.5 * lower + 1e-6
    difference = dense(increments) - dense(Increments.of(*rounded[:2], CONFIG))
    measured = np.linalg.norm(difference) / increments.norm
    np.testing.assert_allclose(rounded.error, measured, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_rank_holds_increments_exactly(name: str):
    for source in ("fact_shared_kind", "lora_qv") if name != "fact_cp" else ("fact_cp",):
        increments = random_increments(ALL[source])
        method: Method = METHODS[name](rank=1, scale=0.5)
        full = full_rank(method, increments, CONFIG)
        for rank in (full, full + 1):
            exact = round_to(dataclasses.replace(method, rank=rank), increments, CONFIG)  # type: ignore[call-arg]
            assert exact.error < 1e-6


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_rounding_does_not_depend_on_the_gauge(seed: int):
    """U G and inv(G) S are other factors of the same increments."""
    method, rng = FacTTT(5), np.random.default_rng(seed)
    factors = random_factors(method, seed)
    g = np.linalg.qr(rng.normal(size=(5, 5)))[0] * np.exp(rng.uniform(-1, 1, size=5))
    other = {**factors, "U": factors["U"] @ g, "S": np.linalg.inv(g) @ factors["S"]}
    other = {name: np.asarray(value, np.float32) for name, value in other.items()}
    results = [
        round_to(FacTTT(3), Increments.of(method, f, CONFIG), CONFIG) for f in (factors, other)
    ]
    np.testing.assert_allclose(results[0].error, results[1].error, rtol=1e-4)
    a, b = (dense(Increments.of(*rounded[:2], CONFIG)) for rounded in results)
    assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(a)


def test_lora_is_the_truncated_decomposition_of_each_site():
    increments = random_increments(ALL["fact_tt"])
    rounded = round_to(LoRA(2, scale=3.0), increments, CONFIG)
    assert isinstance(rounded.method, LoRA)
    assert rounded.method.sites == "q,k,v,o,fc1,fc2"
    np.testing.assert_allclose(rounded.error, rounded.bound, atol=1e-6)
    query = dense(increments)[0]
    expected = np.linalg.norm(query, 2)
    product = 3 * rounded.factors["A_q"][0] @ rounded.factors["B_q"][0]
    np.testing.assert_allclose(np.linalg.norm(product, 2), expected, rtol=1e-5)
    assert round_to(LoRA(2), random_increments(ALL["lora_qv"]), CONFIG).method.sites == "q,v"  # type: ignore[attr-defined]


def test_the_smallest_rank_within_an_error():
    increments = random_increments(FacTTT(8))
    rounded = round_within(FacTTT(), increments, CONFIG, 0.5)
    assert rounded.error <= 0.5
    rank = rounded.method.rank  # type: ignore[attr-defined]
    assert round_to(FacTTT(rank - 1), increments, CONFIG).error > 0.5
    with pytest.raises(UserError, match="No rank has an error of 1e-12 or less"):
        round_within(FacTTT(), increments, CONFIG, 1e-12)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("vpt_deep", FacTTT(1), "VPTDeep has prompts, which have no low-rank form"),
        ("convpass", FacTTT(1), "bottlenecks"),
        ("linear", FacTTT(1), "all zero"),
        ("fact_tt", FacTTT(1, scale=0.0), "scale to round to is 0"),
        ("fact_tt", ALL["ssf"], "cannot be rounded to SSF"),
    ],
)
def test_what_cannot_be_rounded_is_named(source: str, target: Method, words: str):
    method = ALL[source]
    with pytest.raises(UserError, match=words):
        round_to(target, random_increments(method), CONFIG)
