"""The pre-trained ViT that is shipped."""

import hashlib
import re

import jax
import jax.numpy as jnp
from places import ROOT

from fact_jax.files.download import find_weights
from fact_jax.files.weights import load_vit

DOCS = ROOT / "docs" / "bundled_model.md"


def test_the_file_is_small_and_is_the_one_in_the_docs():
    path = find_weights("vit_mini")
    assert path.stat().st_size <= 6_000_000
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.findall(r"sha256 `([0-9a-f]{64})`", DOCS.read_text()) == [digest]


def test_it_loads_and_every_number_is_finite_and_not_random():
    model, base = load_vit("vit_mini")
    assert (model.config.image_size, model.config.patch_size) == (32, 8)
    leaves = jax.tree.leaves(base)
    assert all(leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    # Biases start at zero: a file of fresh parameters would still hold zeros.
    bias = base["Transformer"]["encoderblock"]["MlpBlock_3"]["Dense_0"]["bias"]
    assert jnp.abs(bias).min(axis=1).max() > 0
