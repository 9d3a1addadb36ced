"""The network that a program's options ask for, and its training step as a sweep runs it."""

import argparse
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.common import CLASSES
from fact_jax import ViT, ViTConfig, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.training.mesh import make_mesh, put, replicated, stack
from fact_jax.training.recipe import PLAIN, Recipe
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, train_set
from fact_jax.tuning.method import Method


def network(args: argparse.Namespace) -> ViTConfig:
    """The variant with those of the options' image size, dtype, rematerialisation and attention."""
    config = get_variant(args.variant)
    names = ("dtype", "remat", "attention")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return config.replace(**given, image_size=args.image_size or config.image_size)


def random_images(batch: int, side: int) -> np.ndarray:
    """Pictures [b, y, x, 3], uint8."""
    shape = (batch, side, side, 3)
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def training(
    model: ViT,
    method: Method,
    batch: int,
    mesh: Mesh | None = None,
    *,
    trials: int = 1,
    steps: int = 1,
    rate: float | None = None,
    base: Any = None,
    recipe: Recipe = PLAIN,
) -> tuple[Any, list[Any]]:
    """The training program of a sweep, and the arguments of its first epoch.

    Args:
      batch: images a step of each trial; random pixels, the same in all steps.
      mesh: by default of one device.
      trials: that train side by side.
      steps: of the epoch.
      rate: of dropout and stochastic depth; without either if None.
      base: frozen weights, or their shapes; by default random ones.
      recipe: with a consistency, its noise has deviation 1 and its weight is 1.

    Returns:
      The jitted program, and [base, states, trials, number of the epoch, steps]. It
      gives (states, losses), and is given the states' memory.
    """
    mesh = mesh or make_mesh(batch, jax.devices()[:1], trials)
    images = np.tile(random_images(batch, model.config.image_size), (steps, 1, 1, 1))
    labels = np.tile(np.arange(batch, dtype=np.int32) % CLASSES, steps)
    hyper = jax.tree.map(np.float32, Hyper(1e-3, 1e-4, 1.0, rate, rate))
    if recipe.consistency:
        one = np.float32(1)
        hyper = hyper._replace(consistency_noise=one, consistency_weight=one)
    step, data = (
        TrainStep(model, method, "imagenet", batch, mesh, recipe),
        train_set(images, labels, CLASSES),
    )
    stacks = (
        [step.init(t, CLASSES, CLASSES, capacity=len(images)) for t in range(trials)],
        [Trial(data, hyper, np.int32(t)) for t in range(trials)],
    )
    if base is None:
        base = put(init_base(model.config, jax.random.key(0)), replicated(mesh))
    arguments = [base, *(stack(trees, mesh) for trees in stacks), np.int32(0), np.int32(steps)]
    return step.program, arguments
