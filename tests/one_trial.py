"""An epoch's program for one trial, without the axis of trials."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fact_jax.training.mesh import Mesh, trial_sharded
from fact_jax.training.trial import Hyper, TrainSet, TrialState


def alone(epoch: Callable, batch_size: int, mesh: Mesh) -> Callable:
    """``run(base, state, data, hyper, seed, number) -> (state, losses)``: one trial, no axis."""

    def run(base, state: TrialState, data: TrainSet, hyper: Hyper, seed, number):
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, data, hyper, seed))
        stacked = jax.device_put(stacked, trial_sharded(mesh))
        steps = jnp.maximum(data.num_examples // batch_size, 1)  # num_steps, maybe traced
        out = epoch(base, *stacked, number, steps)
        return jax.tree.map(lambda x: x[0], out)

    return run
