"""Settings of methods: their ranges, their types, and the ones that older files lack."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fact_jax import UserError, get_variant
from fact_jax.backbone.block import norm
from fact_jax.ranges import allowed_values
from fact_jax.tuning import (
    METHODS,
    NOAH,
    Adapter,
    AdaptFormer,
    Combination,
    FacTShared,
    FacTTK,
    FacTTT,
    LoRA,
    RepAdapter,
)
from fact_jax.tuning.registry import build_stored, describe

VIT_B16 = get_variant("vit_b16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Adapter(8, "behind"), "placement is 'behind'; expected 'noah' or 'houlsby'"),
        (lambda: AdaptFormer(form="own"), "form is 'own'"),
        (lambda: AdaptFormer(form="petl", layer_norm=True), "has no LayerNorm"),
        (lambda: LoRA(sites="q,x"), "sites is 'q,x'"),
        (lambda: LoRA(sites="q,q"), "sites is 'q,q'"),
        (lambda: LoRA(sites=""), "sites is ''"),
        (lambda: LoRA(sites="q,fc1", shared_input=True), "share no A"),
        (lambda: RepAdapter(8, groups=3), "not a multiple of groups 3"),
        (lambda: RepAdapter(5, 5).init(jax.random.key(0), VIT_B16), "width 768 is not a multiple"),
        (lambda: FacTTK(4, mlp_cores="paper"), "mlp_cores is 'paper'"),
        (
            lambda: FacTTT(4).init(jax.random.key(0), VIT_B16.replace(mlp_dim=100)),
            "multiple of width; this ViT has 100 and 768",
        ),
        (lambda: NOAH(()), "widths is empty"),
        (lambda: NOAH((0, 5)), r"widths is \(0, 5\); expected whole numbers from 1"),
        (lambda: NOAH(prompt_positions=-1), "prompt_positions is -1"),
        (lambda: FacTShared(share="all"), "share is 'all'"),
        (lambda: LoRA(sites=3), "sites is 3; expected a text"),
        (lambda: LoRA(shared_input="no"), "shared_input is 'no'; expected True or False"),
        (lambda: AdaptFormer(layer_norm=True, layer_norm_eps=0.0), "layer_norm_eps is 0.0"),
        (lambda: Combination((("lora", LoRA()),), scale=float("nan")), "scale is nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        settings()


SIZES = {"rank", "width", "num_tokens", "groups", "population", "generations", "supernet_epochs"}


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_every_setting_of_every_method_has_a_range(kind):
    fields = dataclasses.fields(kind)
    given = {f.name: (1, 1) for f in fields if f.default is dataclasses.MISSING}  # a subnet's rows
    assert allowed_values(kind).keys() == {f.name for f in fields}
    kind(**given)
    wrong = {"scale": (math.nan, math.inf, "1", True, None, 10**400)}
    wrong |= {
        f.name: ("4", 0, -1, True, 2.5, 4.0, math.nan, 65_537) for f in fields if f.name in SIZES
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match=f"{name} is .*; expected a"):
                kind(**{**given, name: value})


def test_numpy_s_numbers_become_python_s():
    """A method is a key, and can be written as JSON."""
    method = FacTTT(np.int64(4), np.float32(0.5))
    assert (type(method.rank), type(method.scale)) == (int, float)
    assert method == FacTTT(4, 0.5)
    assert NOAH([1, 2]).widths == (1, 2)


def test_adaptformer_s_own_norm_has_its_code_s_epsilon(small_config):
    """torch.nn.LayerNorm's 1e-5, whatever the ViT's; None is the ViT's, as before November 2026."""
    config = small_config.replace(layer_norm_eps=0.5)
    weights = {"scale": jnp.ones(24), "bias": jnp.zeros(24)}
    x = 1e-3 * jax.random.normal(jax.random.key(0), (2, 3, 24))
    for epsilon, expected in ((1e-5, 1e-5), (None, 0.5)):
        method = AdaptFormer(2, layer_norm=True, layer_norm_eps=epsilon)
        factors = method.init(jax.random.key(0), config)
        (f,) = method.adaptation(factors, config).bypasses["across_mlp"]
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + expected)
        np.testing.assert_allclose(norm(config, weights, x, f.norm_eps), y, rtol=1e-4, atol=1e-6)
    assert AdaptFormer().layer_norm_eps == 1e-5


def test_a_factor_file_without_the_epsilon_has_the_vit_s():
    """Files of earlier versions do not name it, and were trained with the ViT's."""
    old = {"width": 2, "layer_norm": True}
    assert build_stored("adaptformer", old) == AdaptFormer(2, layer_norm=True, layer_norm_eps=None)
    both = build_stored("adaptformer+lora", {"adaptformer": old, "lora": {}, "scale": 1.0})
    assert dict(both.parts)["adaptformer"].layer_norm_eps is None
    name, settings = describe(AdaptFormer(2, layer_norm=True))
    assert build_stored(name, settings).layer_norm_eps == 1e-5
