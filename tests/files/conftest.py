"""Random weights of a small ViT-Ti/16."""

import jax
import numpy as np
import pytest
from weight_layouts import VARIANT

from fact_jax import VARIANTS, get_variant
from fact_jax.backbone.vit import init_base


@pytest.fixture(scope="module")
def three_blocks():
    """ViT-Ti/16 has three here, for small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, VARIANT, get_variant(VARIANT).replace(depth=3))
        yield


@pytest.fixture(scope="module")
def base(three_blocks):
    """Random everything: zeros and ones would hide a swapped bias or gain."""
    rng = np.random.default_rng(0)
    structs = jax.eval_shape(lambda: init_base(get_variant(VARIANT), jax.random.key(0)))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32"), structs)


@pytest.fixture(scope="module")
def zeros(base):
    """Quick to compress."""
    return jax.tree.map(np.zeros_like, base)
