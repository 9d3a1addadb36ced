"""Numbers of few bits, alone and packed in files."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_factors import trainable

from fact_jax import FacTCP, FacTTK, FacTTT, LoRA, UserError, VPTDeep, get_variant, load_factors
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.quantise import BITS, Bits, dequantise, group_axes, quantise, rounded
from fact_jax.files.factors import save_factors
from fact_jax.serving.rounding import Target, round_task

ARRAYS = st.tuples(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))


def near(x, bits):
    return np.asarray(dequantise(quantise(x, (0,), bits), bits))


@given(ARRAYS, st.sampled_from(BITS), st.integers(-60, 60))
@settings(max_examples=40, deadline=None)
def test_rounded_numbers_are_few_and_near_and_stay_as_they_are(array, bits, exponent):
    seed, rows, columns = array
    x = np.random.default_rng(seed).normal(size=(rows, columns)).astype("float32")
    y = near(x, bits)
    for column in y.T if bits < 16 else ():
        levels = np.unique(np.abs(column)) / max(np.abs(column).min(), 1e-30)
        assert len(levels) <= 2 ** (bits - 1)
    assert np.abs(y - x).max() <= np.abs(x).max() * min(1.0, 2.0 ** (2 - min(bits, 13)))
    np.testing.assert_array_equal(near(x * 2.0**exponent, bits), y * 2.0**exponent)
    np.testing.assert_allclose(near(y, bits), y, rtol=2e-3, atol=1e-7)


def test_one_bit_is_the_sign_times_the_mean_of_the_absolute_values():
    x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    np.testing.assert_allclose(near(x, 1), np.sign(x) * np.abs(x).mean(0), rtol=1e-3)


def test_the_error_of_normal_numbers_is_the_least_that_evenly_spaced_levels_have():
    x = np.random.default_rng(0).normal(size=(768, 4)).astype("float32")
    errors = {bits: np.linalg.norm(near(x, bits) - x) / np.linalg.norm(x) for bits in BITS}
    # Max, "Quantizing for minimum distortion", 1960, table II: 2, 4 and 16 levels.
    assert errors[1] == pytest.approx(0.3634**0.5, abs=0.02)
    assert errors[2] == pytest.approx(0.1188**0.5, abs=0.02)
    assert errors[4] == pytest.approx(0.01154**0.5, abs=0.01)
    assert errors[8] < 0.008
    assert errors[16] < 0.0003


def test_a_group_is_a_column_of_u_a_row_of_v_a_slice_of_s_and_a_class():
    shapes = {"factors/U": (768, 4), "factors/V": (4, 768), "factors/S": (12, 12, 4, 4)}
    shapes |= {"head/kernel": (128, 397), "factors/B_q": (12, 8, 768), "factors/bias": (768,)}
    axes = [group_axes(name, shape) for name, shape in shapes.items()]
    assert axes == [(0,), (1,), (2, 3), (0,), (2,), (0,)]


def test_the_gradient_goes_straight_through(small_config):
    tree = trainable(FacTTT(3), small_config)
    grads = jax.grad(lambda t: sum(x.sum() for x in jax.tree.leaves(rounded(t, Bits(2, 1)))))(tree)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, np.ones_like(g)), grads)


@pytest.mark.parametrize("method", [FacTTT(5), FacTTK(3), FacTCP(4), LoRA(2), VPTDeep(2)])
@pytest.mark.parametrize("bits", [Bits(16, 16), Bits(8, 4), Bits(4, 1), Bits(2, 2), Bits(1, 8)])
def test_a_small_file_holds_the_rounded_numbers(tmp_path, small_config, method, bits):
    tree, path = trainable(method, small_config), tmp_path / "f.safetensors"
    save_factors(path, method, tree["factors"], tree["head"], small_config, bits, task="dtd")
    task = load_factors(path)
    assert (task.method, task.metadata["task"]) == (method, "dtd")
    jax.tree.map(
        np.testing.assert_array_equal,
        {"factors": task.factors, "head": task.head},
        jax.tree.map(np.asarray, rounded(tree, bits)),
    )


@pytest.mark.parametrize(("bits", "most"), [((4, 1), 6 * 1024), ((2, 1), 4 * 1024)])
def test_a_rank_4_task_of_vit_b16_with_ten_classes_takes_kilobytes(tmp_path, bits, most):
    config, path = get_variant("vit_b16"), tmp_path / "f.safetensors"
    tree = trainable(FacTTT(4), config, classes=10)
    names = [f"class name {i}" for i in range(10)]
    more = dict(variant="vit_b16", task="dtd", image_size=224, normalisation="imagenet")
    more |= dict(class_names=names, protocol="val", weights_sha256="0" * 64, jpeg_quality=None)
    save_factors(path, FacTTT(4), tree["factors"], tree["head"], config, bits, **more)
    assert path.stat().st_size <= most
    assert load_factors(path).metadata["vit"]["width"] == 768


DAMAGED = {
    "another number of bits": (lambda c: c.replace(b"[4,1]", b"[3,1]"), "cannot have 3 bits"),
    "fewer bytes than the method needs": (lambda c: c.replace(b"[4,1]", b"[8,1]"), "packed is"),
    "no bits": (lambda c: c.replace(b'"bits"', b'"bitz"'), "format version 2"),
    "numbers that are not finite": (lambda c: c[:-120] + b"\xff" * 120, "non-finite"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_small_file_is_refused(tmp_path, small_config, damage):
    tree, path = trainable(FacTTT(3), small_config), tmp_path / "f.safetensors"
    save_factors(path, FacTTT(3), tree["factors"], tree["head"], small_config, (4, 1))
    change, words = DAMAGED[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=words):
        load_factors(path)


def test_an_array_without_numbers_has_few_bits_too():
    """NOAH's subnet without adapters has some."""
    empty = {"factors": {"down_bias": np.zeros((0,), np.float32)}}
    assert rounded(empty, Bits(4, 1))["factors"]["down_bias"].shape == (0,)


def test_bits_that_there_are_not_are_refused(tmp_path, small_config):
    tree, path = trainable(FacTTT(3), small_config), tmp_path / "f.safetensors"
    with pytest.raises(UserError, match="head cannot have 3 bits a number; expected one of 1, 2"):
        save_factors(path, FacTTT(3), tree["factors"], tree["head"], small_config, (4, 3))
    assert not path.exists()


def test_any_method_takes_few_bits_and_rounding_counts_them(tmp_path, small_config):
    for method in (VPTDeep(2), FacTTT(6)):
        tree, path = trainable(method, small_config), tmp_path / "f.safetensors"
        save_factors(path, method, tree["factors"], tree["head"], small_config)
        small = round_task(load_factors(path), Target(bits=Bits(4, 1)))
        path.write_bytes(small.content)
        assert load_factors(path).method == method
        assert small.rounded.error == pytest.approx(0.1, abs=0.03)
    task = load_factors(path)
    within = round_task(task, Target(error=0.2, bits=Bits(8, 1)))
    path_within = tmp_path / "within.safetensors"
    path_within.write_bytes(within.content)
    increments = Increments.of(task.method, task.factors, small_config)
    kept = load_factors(path_within)
    lost = increments - Increments.of(kept.method, kept.factors, small_config)
    assert lost.norm / increments.norm == pytest.approx(within.rounded.error, rel=1e-3)
    assert within.rounded.error <= 0.2
    with pytest.raises(UserError, match="No rank has an error of 0.05 or less"):
        round_task(task, Target(error=0.05, bits=Bits(2, 1)))
    again = round_task(load_factors(path), Target(bytes=1200, bits=Bits(2, 1)))
    assert 1000 < len(again.content) <= 1200
    assert load_factors(path).metadata["bits"] == [4, 1]
