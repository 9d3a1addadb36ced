"""Rounding by the inputs: their second moments, and what is kept of the outputs."""

import dataclasses

import jax
import numpy as np
import pytest
from made_up import CONFIG, dense, random_factors, random_increments
from tried_methods import ALL

from fact_jax import FacTTK, FacTTT, UserError, ViT, ViTConfig
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.moments import second_moments
from fact_jax.algebra.rounding import round_to, round_within
from fact_jax.algebra.weighted import ridged
from fact_jax.backbone.vit import init_base


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")


SIGLIP = CONFIG.replace(class_token=False, pooling="attention")


@pytest.mark.parametrize("config", [CONFIG, SIGLIP])
def test_moments_say_what_increments_put_out(config: ViTConfig, inputs: np.ndarray):
    """tr(D^T C D) of each slice is the mean square of its output, read from the network itself."""
    model, base = ViT(config), init_base(config, jax.random.key(0))
    method = FacTTT(3, scale=0.1)
    factors = random_factors(method)
    adaptation = method.adaptation(factors, config)
    increments = Increments.of(method, factors, CONFIG)
    joint = Joint.of(increments)
    moments = second_moments(model, base, adaptation, [inputs[:2], inputs[2:]], joint.left)
    cores = joint.a @ joint.b
    measured = np.einsum("npe,npq,nqe->n", cores, moments, cores).reshape(2, 8)
    _, state = model.apply({"params": base}, inputs, adaptation, mutable="intermediates")
    blocks = state["intermediates"]["blocks"][0]
    slices = dense(increments).reshape(2, 8, 12, 12)
    hidden = np.split(np.asarray(blocks["fc2_input"]), 2, axis=-1)
    read = [blocks["qkv_input"]] * 3 + [blocks["o_input"]] + [blocks["fc1_input"]] * 2 + hidden
    for i, x in enumerate(read):
        outputs = np.einsum("lbtd,lde->lbte", x, slices[:, i])
        every = (outputs**2).sum(axis=-1).mean(axis=(1, 2))
        class_token = (outputs[-1, :, 0] ** 2).sum(axis=-1).mean()
        # Keys and values are of all tokens.
        last = every[-1] if i in (1, 2) or config is SIGLIP else class_token
        np.testing.assert_allclose(measured[:, i], [every[0], last], rtol=1e-4)
    with pytest.raises(UserError, match="no images"):
        second_moments(model, base, adaptation, [], joint.left)


def random_moments(size: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(16, 20, size)) * 2.0 ** -np.arange(size)
    return x.swapaxes(1, 2) @ x


@pytest.mark.parametrize("source", ["fact_shared_kind", "lora_all"])
@pytest.mark.parametrize("rank", [1, 8])
def test_weighted_rounding_keeps_more_of_the_outputs(source: str, rank: int):
    increments = random_increments(ALL[source])
    joint = Joint.of(increments)
    moments = random_moments(len(joint.left_values))
    weighted = round_to(FacTTT(rank, 0.5), increments, CONFIG, moments)
    plain = round_to(FacTTT(rank, 0.5), increments, CONFIG)

    def kept(rounded) -> float:
        lost = dense(increments) - dense(Increments.of(*rounded[:2], CONFIG))
        lost, whole = (joint.left.T @ x for x in (lost, dense(increments)))
        squares = [np.einsum("npe,npq,nqe->", x, ridged(moments), x) for x in (lost, whole)]
        return (squares[0] / squares[1]) ** 0.5

    np.testing.assert_allclose(weighted.weighted_error, kept(weighted), rtol=1e-3)
    assert kept(weighted) < 0.97 * kept(plain)
    assert weighted.bound is None


def test_equal_moments_give_the_plain_rounding():
    increments = random_increments(ALL["fact_cp"])
    moments = np.broadcast_to(np.eye(3), (16, 3, 3))
    weighted = round_to(FacTTT(2), increments, CONFIG, moments)
    plain = round_to(FacTTT(2), increments, CONFIG)
    np.testing.assert_allclose(weighted.error, plain.error, rtol=1e-3)
    np.testing.assert_allclose(weighted.weighted_error, weighted.error, rtol=1e-5)


def test_an_error_with_moments_is_that_of_the_outputs():
    increments = random_increments(FacTTT(8))
    rounded = round_within(FacTTT(), increments, CONFIG, 0.3, random_moments(8))
    assert rounded.weighted_error is not None
    assert rounded.weighted_error <= 0.3 < rounded.error
    with pytest.raises(UserError, match="only that to FacTTT does"):
        round_to(FacTTK(2), increments, CONFIG, random_moments(8))


def test_the_full_rank_is_exact_with_moments_too():
    increments = random_increments(FacTTT(3))
    method = dataclasses.replace(FacTTT(3), scale=2.0)
    assert round_to(method, increments, CONFIG, random_moments(3)).error < 1e-6
