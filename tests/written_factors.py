"""Factors of random numbers, and files of them."""

import jax
import numpy as np

from fact_jax import FacTTK, FacTTT
from fact_jax.files.factors import to_bytes
from fact_jax.tuning.method import factor_shapes

METHODS = [FacTTT(5, 0.1), FacTTK(8, 10.0), FacTTK(6, 2.0), FacTTT(1, 1.0), FacTTK(1, 100.0)]


def trainable(method, config, classes=7, seed=0):
    """Factors and head of random numbers, V included."""
    rng = np.random.default_rng(seed)
    head = {"kernel": np.empty((config.width, classes)), "bias": np.empty(classes)}
    factors = {name: np.empty(shape) for name, shape in factor_shapes(method, config).items()}
    tree = {"factors": factors, "head": head}
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("float32"), tree)


def written(path, method, config, classes=7, **metadata):
    tree = trainable(method, config, classes)
    path.write_bytes(to_bytes(method, tree, config, metadata))
    return tree


def assert_same(task, tree):
    found = {"factors": task.factors, "head": task.head}
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
