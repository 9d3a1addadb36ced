"""Spectra and similarities of trained tasks."""

import numpy as np
from made_up import CONFIG, dense, random_factors, random_increments
from tried_methods import ALL

from fact_jax import FacTTT
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.spectra import norms, similarity, singular_values


def test_spectra_are_those_of_the_sites():
    increments = random_increments(ALL["lora_all"])
    slices = dense(increments).reshape(2, 8, 12, 12)
    values, sizes = singular_values(increments, CONFIG), norms(increments, CONFIG)
    for name, matrices in {
        "v": slices[:, 2],
        "fc1": np.concatenate([slices[:, 4], slices[:, 5]], axis=2),
        "fc2": np.concatenate([slices[:, 6], slices[:, 7]], axis=1),
    }.items():
        expected = np.linalg.svd(matrices, compute_uv=False)[:, :3]
        np.testing.assert_allclose(values[name], expected, rtol=1e-5)
        np.testing.assert_allclose(sizes[name], np.linalg.norm(matrices, axis=(1, 2)), rtol=1e-5)


def test_tasks_are_as_similar_as_their_spaces():
    method = FacTTT(3)
    first, second = random_factors(method, 0), random_factors(method, 1)
    mixed = {**second, "U": first["U"]}
    tasks = [Increments.of(method, factors, CONFIG) for factors in (first, second, mixed)]
    inputs, outputs = similarity(tasks)
    np.testing.assert_allclose([inputs[0, 0], inputs[0, 2], outputs[1, 2]], 1, atol=1e-9)
    q = [np.linalg.qr(factors["U"].astype(float))[0] for factors in (first, second)]
    np.testing.assert_allclose(inputs[0, 1], np.linalg.norm(q[0].T @ q[1]) ** 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(inputs, inputs.T, rtol=1e-9)
