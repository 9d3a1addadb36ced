"""The programs that tpu_compile.py compiles: training, merging, prediction."""

import functools
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from benchmarks.devices.tpu_counts import collectives, matrix_flops
from fact_jax import Adaptation, ViT, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.serving.mixed import mixed_features, mixed_logits
from fact_jax.training.evaluation import Merged, merged, predict
from fact_jax.training.mesh import batch_sharded, make_mesh, replicated, trial_sharded
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, TrainSet, Trial
from fact_jax.tuning import METHODS

TOPOLOGIES = {8: "v5e:2x4", 16: "v5e:4x4"}
VARIANT, RANK, TRAIN_IMAGES, BATCH, EVAL_BATCH = "vit_b16", 16, 1000, 64, 256
NUM_CLASSES, PADDED_CLASSES = 47, 397  # DTD in a sweep of all 19 tasks
METHOD = METHODS["fact_tt"](rank=RANK)


def slice_devices(chips: int) -> list[Any]:
    """Compile-only devices of a v5e slice; of the 8-chip one if there are fewer."""
    from jax.experimental import topologies

    name = TOPOLOGIES.get(chips, TOPOLOGIES[8])
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices[:chips]


def struct(tree: Any, sharding: NamedSharding | None = None, lead: tuple[int, ...] = ()) -> Any:
    """A tree of arrays or shapes as abstract arguments, with further leading axes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=sharding), tree
    )


def make_model(remat: str = "none", unroll: bool = False) -> tuple[ViT, Any]:
    """The model, and its base's shapes."""
    model = ViT(get_variant(VARIANT).replace(dtype="bfloat16", remat=remat, unroll=unroll))
    return model, jax.eval_shape(lambda: init_base(model.config, jax.random.key(0)))


def trial_state(model: ViT) -> Any:
    step = TrainStep(model, METHOD, "imagenet", BATCH, make_mesh(BATCH, slice_devices(1)))
    return jax.eval_shape(lambda: step.init(0, NUM_CLASSES, PADDED_CLASSES))


@functools.cache
def compile_epoch(
    chips: int, trials: int, batch: int = BATCH, remat: str = "none", unroll: bool = False
) -> dict[str, Any]:
    """Training of stacked trials.

    The loop over an epoch's steps counts once: all figures are of one step.
    """
    mesh = make_mesh(batch, slice_devices(chips), trials)
    model, base = make_model(remat, unroll)
    number, integer = struct(jnp.float32(0)), struct(jnp.int32(0))
    side, images = model.config.image_size, max(TRAIN_IMAGES, batch)
    data = TrainSet(
        jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images,), jnp.int32),
        integer,
        integer,
    )
    hyper = Hyper(number, number, number, dropout_rate=number, drop_path_rate=number)
    stacks = (trial_state(model), Trial(data, hyper, integer))
    every = replicated(mesh)
    arguments = (
        struct(base, every),
        *struct(stacks, trial_sharded(mesh), (trials,)),
        *struct((integer, integer), every),
    )
    program = TrainStep(model, METHOD, "imagenet", batch, mesh).program
    result = compile_program(program, arguments, (1,) if unroll else (1, model.config.depth - 2))
    labels = {"trials": trials, "batch": batch, "remat": remat}
    name = "training step, unrolled" if unroll else "training step"
    return {"program": name, **labels, "mesh": dict(mesh.shape), **result}


def compile_evaluation(chips: int) -> Iterator[dict[str, Any]]:
    """Merging, and prediction whose batch is split over all chips."""
    mesh = make_mesh(EVAL_BATCH, slice_devices(chips))
    model, shapes = make_model()
    every, side = replicated(mesh), model.config.image_size
    trainable = struct(trial_state(model).trainable, every)
    base, number = struct(shapes, every), struct(jnp.float32(0), every)
    images = jax.ShapeDtypeStruct(
        (EVAL_BATCH, side, side, 3), jnp.uint8, sharding=batch_sharded(mesh)
    )
    config, classes = model.config, struct(jnp.int32(0), every)
    trained, trips = Merged(base, Adaptation(), trainable["head"]), (config.depth - 2,)
    for name, program, arguments, loops in (
        ("merging", merged, (METHOD, config, base, trainable["factors"], number), ()),
        ("prediction", predict, (config, "imagenet", trained, classes, images), trips),
    ):
        labels = {"trials": 1, "batch": EVAL_BATCH if name == "prediction" else 0}
        result = compile_program(program, arguments, loops)
        yield {"program": name, **labels, "mesh": dict(mesh.shape), **result}


def compile_bank(chips: int) -> Iterator[dict[str, Any]]:
    """A mixed batch of a bank, split over all chips: features, and logits by heads of its images.

    `kernels_by_image` are arrays in the compiled program that could be a weight for each image.
    """
    mesh = make_mesh(EVAL_BATCH, slice_devices(chips))
    model, shapes = make_model()
    config, split = model.config, batch_sharded(mesh)
    factors = jax.eval_shape(lambda: METHOD.init(jax.random.key(0), config))
    rows = struct({"factors": factors, "scale": jnp.float32(0)}, split, (EVAL_BATCH,))
    side, d = config.image_size, config.width
    images = jax.ShapeDtypeStruct((EVAL_BATCH, side, side, 3), jnp.float32, sharding=split)
    heads = {"kernel": jnp.zeros((d, NUM_CLASSES)), "bias": jnp.zeros(NUM_CLASSES)}
    heads, x = struct((heads, jnp.zeros(d)), split, (EVAL_BATCH,))
    base = struct(shapes, replicated(mesh))
    for name, program, arguments, loops in (
        ("bank", mixed_features, (config, METHOD, base, images, rows, {}), (config.depth - 2,)),
        ("bank's heads", mixed_logits, (heads, x), ()),
    ):
        result = compile_program(program, arguments, loops, mixed=(EVAL_BATCH // chips, d))
        yield {
            "program": name,
            "trials": 1,
            "batch": EVAL_BATCH,
            "mesh": dict(mesh.shape),
            **result,
        }


def kernels_by_image(hlo: str, images: int, d: int) -> list[str]:
    """Arrays of a compiled program with an axis of the images and two of d or more."""
    arrays = set(re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", hlo))

    def is_one(shape: list[int]) -> bool:
        return images in shape and sum(n >= d for n in shape) > 1 + (images >= d)

    return sorted(a for a in arrays if is_one([int(n) for n in a.split(",")]))


def compile_program(
    program: Any, arguments: tuple, trips: tuple[int, ...], mixed: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Compiles a jitted program: its numbers, or {"refused": message} if memory is too small.

    `mixed` are a chip's images and the width of the network, for programs of mixed batches.
    """
    traced = program.trace(*arguments)
    started = time.perf_counter()
    try:
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            "refused": str(error).split("\n\n")[0],
            "compile_seconds": time.perf_counter() - started,
        }
    seconds = time.perf_counter() - started
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    cost = compiled.cost_analysis() or {}
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # Donated arguments are counted as arguments.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    gib = {key: value / 2**30 for key, value in sizes.items()}
    return {
        "gib_per_chip": {
            **gib,
            "total": sum(gib.values()),
            # The compiler's own figure of what lives at once; without gaps between the buffers.
            "peak": memory.peak_memory_in_bytes / 2**30,
        },
        "matrix_flops_all_chips": matrix_flops(traced.jaxpr.jaxpr),
        # Both of one chip, with the body of every loop counted once.
        "xla_flops_loops_once": cost.get("flops"),
        "xla_bytes_accessed_loops_once": cost.get("bytes accessed"),
        # Instructions that the compiler itself repeats in order to save memory.
        "recomputed_by_compiler": len(re.findall(r"^ *%?\S+\.remat\S* = ", hlo, re.MULTILINE)),
        "collectives": list(collectives(hlo, trips)),
        "compile_seconds": seconds,
        **({"kernels_by_image": kernels_by_image(hlo, *mixed)} if mixed else {}),
    }
