"""FacT's successors: numbers, and the formulas of their papers written out slice by slice."""

import jax
import numpy as np
import pytest
from tried_methods import random_factors

from fact_jax import UserError, get_variant, merge
from fact_jax.backbone.adaptation import SITES, magnitude_ratio
from fact_jax.tuning import (
    EFFT,
    CaRA,
    DoRA,
    LoRTA,
    MetaTT,
    MetaTTHeads,
    MetaTTTasks,
    UniLoRA,
    count_parameters,
)

# At rank 8, 16 and 32 on ViT-B/16.
NUMBERS = {
    MetaTT: (13_824, 30_720, 73_728),
    MetaTTHeads: (8_960, 22_528, 63_488),
    LoRTA: (6_880, 13_760, 27_520),
    CaRA: (24_816, 45_024, 85_440),
    EFFT: (43_392, 87_552, 178_176),
}


def shapes(method):
    config = get_variant("vit_b16")
    return jax.eval_shape(lambda: method.init(jax.random.key(0), config))


@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.__name__)
def test_numbers_are_the_papers(kind):
    counts = tuple(count_parameters(shapes(kind(rank))) for rank in (8, 16, 32))
    assert counts == NUMBERS[kind]


@pytest.mark.parametrize("numbers", [1, 300, 10_000])
def test_uni_lora_has_as_many_numbers_as_asked_for(numbers):
    assert count_parameters(shapes(UniLoRA(numbers))) == numbers
    assert count_parameters(shapes(UniLoRA(numbers, rank=16))) == numbers


def increments(method, config, base):
    """The dense increments of the six sites by name, [l, in, out], and the factors in float64."""
    factors = random_factors(method, config, base)
    adaptation = method.adaptation(factors, config)
    found = {}
    for name in ("qkv", "q", "k", "v", "o", "fc1", "fc2"):
        for pair in adaptation.site(name):
            found[name] = np.asarray(pair.increment(), np.float64)
    if "qkv" in found:
        found |= dict(zip("qkv", np.split(found.pop("qkv"), 3, axis=-1), strict=True))
    return found, {k: np.asarray(v, np.float64) for k, v in factors.items()}, adaptation


def slices(found, layer, d):
    """The d x d slices of a layer in FacT's order."""
    fc1 = np.split(found["fc1"][layer], found["fc1"].shape[-1] // d, axis=1)
    fc2 = np.split(found["fc2"][layer], found["fc2"].shape[1] // d, axis=0)
    return [*(found[name][layer] for name in "qkvo"), *fc1, *fc2]


def test_metatt_is_a_product_of_cores(small_vit):
    config, base = small_vit[0].config, small_vit[1]
    found, f, _ = increments(MetaTT(3, 0.7), config, base)
    for layer in range(config.depth):
        for i, part in enumerate(slices(found, layer, config.width)):
            expected = 0.7 * f["U"] @ f["G"][layer] @ f["M"][i] @ f["V"]
            np.testing.assert_allclose(part, expected, atol=1e-5)


def test_metatt_heads_has_a_core_for_each_head(small_vit):
    config, base = small_vit[0].config, small_vit[1]
    found, f, _ = increments(MetaTTHeads(3, 0.7), config, base)
    for layer in range(config.depth):
        for i, part in enumerate(slices(found, layer, config.width)):
            for j, columns in enumerate(np.split(part, config.num_heads, axis=1)):
                expected = 0.7 * f["U"] @ f["G"][layer] @ f["M"][i] @ f["H"][j] @ f["V"]
                np.testing.assert_allclose(columns, expected, atol=1e-5)


@pytest.mark.parametrize("heads", [False, True])
def test_metatt_tasks_has_a_core_for_the_task_behind_that_of_the_layer(heads, small_vit):
    config, base = small_vit[0].config, small_vit[1]
    found, f, _ = increments(MetaTTTasks(3, 0.7, heads), config, base)
    for layer in range(config.depth):
        for i, part in enumerate(slices(found, layer, config.width)):
            left = 0.7 * f["U"] @ f["G"][layer] @ f["T"] @ f["M"][i]
            columns = [left @ head @ f["V"] for head in f["H"]] if heads else [left @ f["V"]]
            np.testing.assert_allclose(part, np.concatenate(columns, axis=1), atol=1e-5)


def test_tasks_of_metatt_share_all_but_r_squared_numbers():
    for method in (MetaTTTasks(16), MetaTTTasks(16, heads=True)):
        own = {name: s for name, s in shapes(method).items() if name not in method.shared}
        assert count_parameters(own) == 16**2


def test_dora_brings_the_columns_to_its_norms(small_vit):
    model, base = small_vit
    factors = random_factors(DoRA(3, 0.7, "q,fc2"), model.config, base)
    merged = merge(base, DoRA(3, 0.7, "q,fc2").adaptation(factors, model.config))
    blocks = merged["Transformer"]["encoderblock"]
    for site, (module, layer) in {s: SITES[s] for s in ("q", "fc2")}.items():
        norms = np.linalg.norm(blocks[module][layer]["kernel"], axis=1)
        np.testing.assert_allclose(norms, np.abs(factors[f"norms_{site}"]), rtol=1e-4)


def test_lorta_is_a_sum_of_rank_one_tensors(small_vit):
    config, base = small_vit[0].config, small_vit[1]
    found, f, adaptation = increments(LoRTA(3, 0.7), config, base)
    tensor = 0.7 * np.einsum("dr,fr,hr,lr,mr->lmdhf", *(f[name] for name in "ABHGM"))
    tensor = tensor.reshape(config.depth, 4, config.width, config.width)
    for m, name in enumerate("qkv"):
        np.testing.assert_allclose(found[name], tensor[:, m], atol=1e-5)
    np.testing.assert_allclose(found["o"], tensor[:, 3].swapaxes(1, 2), atol=1e-5)
    assert adaptation.fc1 is None


def test_cara_is_two_sums_of_rank_one_tensors_and_biases(small_vit):
    """As CP_A, CP_P and CP_bias are used in the authors' cara.py."""
    config, base = small_vit[0].config, small_vit[1]
    found, f, adaptation = increments(CaRA(3, 0.7), config, base)
    d, depth = config.width, config.depth
    attention = np.einsum("r,kr,er,hr,fr->kehf", f["R1"], f["A1"], f["A2"], f["A3"], f["A4"])
    attention = 0.7 * attention.reshape(depth, 3, d, d)
    others = 0.7 * np.einsum("r,kr,ar,br->kab", f["R2"], f["P1"], f["P2"], f["P3"])
    others = others.reshape(depth, -1, d, d)
    for layer in range(depth):
        q, k, v, o, *mlp = slices(found, layer, d)
        for i, part in enumerate((q, k, v)):
            np.testing.assert_allclose(part, attention[layer, i], atol=1e-5)
        np.testing.assert_allclose(o, others[layer, 0].T, atol=1e-5)
        for i, part in enumerate(mlp):
            stored = others[layer, 1 + i]
            expected = stored.T if i < len(mlp) // 2 else stored
            np.testing.assert_allclose(part, expected, atol=1e-5)
    for site in ("o", "fc1", "fc2"):
        shift = np.asarray(adaptation.affines[site].shift)
        np.testing.assert_allclose(shift, 0.7 * np.tile(f[f"bias_{site}"], (depth, 1)), rtol=1e-5)
        assert (adaptation.affines[site].scale == 1).all()


def test_efft_is_the_same_in_all_layers(small_vit):
    config, base = small_vit[0].config, small_vit[1]
    found, f, _ = increments(EFFT(3, 0.7), config, base)
    expected = {name: f["U"] @ f["C"][i] @ f["V"] for i, name in enumerate("qkvo")}
    expected["fc1"] = f["U_mlp"] @ f["C_mlp"][0] @ f["V_mlp"]
    expected["fc2"] = (f["U_mlp"] @ f["C_mlp"][1] @ f["V_mlp"]).T
    for name, increment in expected.items():
        for layer in range(config.depth):
            np.testing.assert_allclose(found[name][layer], 0.7 * increment, atol=1e-5)


def test_uni_lora_projects_without_changing_lengths(small_vit):
    """The numbers of the LoRA together are as long as theta, and each entry is used as often."""
    config, base = small_vit[0].config, small_vit[1]
    method = UniLoRA(50, rank=2)
    factors = random_factors(method, config, base)
    adaptation = method.adaptation(factors, config)
    numbers = np.concatenate(
        [np.ravel(x) for p in (adaptation.q, adaptation.v) for x in (p.a, p.b)]
    )
    assert np.linalg.norm(numbers) == pytest.approx(
        float(np.linalg.norm(factors["theta"])), rel=1e-5
    )
    _, counts = np.unique(numbers, return_counts=True)
    assert len(counts) == 50
    assert np.ptp(counts) <= 1
    other = UniLoRA(50, rank=2, seed=1).adaptation(factors, config)
    assert np.abs(np.asarray(other.q.a) - np.asarray(adaptation.q.a)).max() > 0.01


def test_a_small_file_cannot_ask_for_all_memory():
    config = get_variant("vit_b16")
    with pytest.raises(UserError, match="rank 65536 has 2,415,919,104 numbers on this ViT"):
        jax.eval_shape(lambda: UniLoRA(1, rank=65536).init(jax.random.key(0), config))
    for kind in (LoRTA, CaRA):
        with pytest.raises(UserError, match="rank is 1025; expected a whole number from 1 to 1024"):
            kind(1025)


def test_no_gradient_goes_through_the_norms_that_dora_divides_by(small_vit):
    """The gradient by A is that of increments with fixed ratios (DoRA, section 4.3)."""
    model, base = small_vit
    method, kernel = DoRA(3, sites="q"), ("MultiHeadDotProductAttention_1", "query")
    factors = random_factors(method, model.config, base)
    adaptation = method.adaptation(factors, model.config)
    w = base["Transformer"]["encoderblock"][kernel[0]][kernel[1]]["kernel"]
    direction = np.random.default_rng(0).normal(size=w.shape).astype("float32")

    def change(pair, ratio=None):
        adapted = w + pair.increment()
        found = magnitude_ratio(w, (pair,), adaptation.magnitudes["q"])
        return (adapted * (found if ratio is None else ratio)[:, None] * direction).sum()

    fixed = magnitude_ratio(w, (adaptation.q,), adaptation.magnitudes["q"])
    ours, expected = (jax.grad(change)(adaptation.q, r).a for r in (None, fixed))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
