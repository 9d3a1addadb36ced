"""The systems of fact-jax in `step.py`."""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.common import CLASSES
from benchmarks.network import network, random_images, training
from benchmarks.speed.systems import System
from benchmarks.speed.timing import WARM_UP, measure, peak_memory
from fact_jax import Adaptation, FacTTK, FacTTT, Linear, ViT, ViTConfig, features
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import Merged, predict
from fact_jax.training.trial import init_head, logits_of

METHODS = {"FacT-TT 16": FacTTT(16), "FacT-TK 32": FacTTK(32), "linear": Linear()}
Arguments = tuple[Any, ...]


class Program(NamedTuple):
    """A jitted program, its arguments, and the next ones, made of these and of its outputs."""

    jitted: Any
    arguments: Arguments
    following: Callable[[Arguments, Any], Arguments] = lambda old, out: old


def _scaled(images: jax.Array) -> jax.Array:
    return images.astype(np.float32) / 255


def evaluation(model: ViT, base: Any, batch: int) -> Program:
    """Prediction with merged weights, as a sweep evaluates."""
    head = init_head(jax.random.key(0), model.config.width, CLASSES, CLASSES)
    images = jax.device_put(random_images(batch, model.config.image_size))
    program = jax.jit(functools.partial(predict, model.config, "imagenet"))
    return Program(program, (Merged(base, Adaptation(), head), CLASSES, images))


def forward(model: ViT, base: Any, batch: int) -> Program:
    """A pass through all tokens of all blocks."""

    def run(base, images):
        return model.apply({"params": base}, _scaled(images), mutable="intermediates")

    return Program(jax.jit(run), (base, random_images(batch, model.config.image_size)))


def full(model: ViT, base: Any, batch: int, count: bool) -> Program:
    """A step of AdamW on all weights."""

    def loss(tree, images, labels):
        logits = logits_of(tree["head"], features(model, tree["base"], _scaled(images)), CLASSES)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = optax.adamw(1e-3)

    def step(tree, state, images, labels):
        value, gradient = jax.value_and_grad(loss)(tree, images, labels)
        updates, state = optimizer.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    head = init_head(jax.random.key(0), model.config.width, CLASSES, CLASSES)
    tree = {"base": base, "head": head}
    state = jax.eval_shape(optimizer.init, tree) if count else optimizer.init(tree)
    images = jax.device_put(random_images(batch, model.config.image_size))
    labels = np.arange(batch, dtype=np.int32) % CLASSES
    return Program(
        jax.jit(step, donate_argnums=(0, 1)),
        (tree, state, images, labels),
        lambda old, out: (*out[:2], *old[2:]),
    )


def program_of(system: System, a: argparse.Namespace) -> Program:
    """The program of a system; with `a.count` the loop over the blocks is written out and the
    weights are shapes."""
    config = network(a).replace(unroll=a.count, **system.settings)
    model = ViT(config)
    if method := METHODS.get(system.program):
        base = _shapes(config) if a.count else None
        epoch, arguments = training(
            model, method, a.batch, steps=a.steps, rate=system.rate, base=base
        )
        return Program(epoch, tuple(arguments), lambda old, out: (old[0], out[0], *old[2:]))
    base = _shapes(config) if a.count else init_base(config, jax.random.key(0))
    if system.program == "full":
        return full(model, base, a.batch, a.count)
    return (evaluation if system.program == "evaluation" else forward)(model, base, a.batch)


def _shapes(config: ViTConfig) -> Any:
    return jax.eval_shape(lambda: init_base(config, jax.random.key(0)))


class Calls:
    """Calls of a compiled program, each with the arguments that follow from the one before."""

    def __init__(self, compiled: Any, program: Program):
        self._compiled, self._program = compiled, program
        self._arguments = program.arguments
        self.out: Any = None

    def __call__(self) -> None:
        self.out = None
        self.out = jax.block_until_ready(self._compiled(*self._arguments))
        self._arguments = self._program.following(self._arguments, self.out)


def run(system: System, a: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and compile time; with `--count` the FLOPs of the program instead."""
    program = program_of(system, a)
    lowered = program.jitted.lower(*program.arguments)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start
    if a.count:
        return {"flops": compiled.cost_analysis()["flops"]}
    memory, call = compiled.memory_analysis(), Calls(compiled, program)
    on_cpu = jax.default_backend() == "cpu"
    for _ in range(WARM_UP):
        call()
    if on_cpu:
        peak_memory(reset=True)
    trains = system.program in METHODS
    seconds = measure(call, 1 if trains else a.steps, a.steps)
    peak = peak_memory() if on_cpu else jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return {
        "seconds": seconds,
        "compile_s": compile_s,
        "peak_bytes": peak,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        # Of equal steps it is equal.
        "last_loss": float(np.ravel(call.out[1])[-1]) if trains else None,
        "environment": environment(),
    }
