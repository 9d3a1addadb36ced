"""Pre-trains the small ViT that is shipped with the package.

    python -m tools.pretrain --config tools/pretrain/config.py --workdir DIR

From the class token of a random scene of a glyph or an emoji, tells which it is and draws it small
and upright. With `config.teacher` (a DINOv2-S safetensors file) it instead imitates the teacher's
class token; docs/bundled_model.md has the comparison. Writes DIR/<variant>.npz, float16 in the
Google layout, at every checkpoint; run again with the same arguments, it resumes.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from fact_jax.backbone.config import ViTConfig, get_variant
from fact_jax.backbone.vit import ViT, init_base
from fact_jax.backbone.vit import features as teacher_features
from fact_jax.files.weights import load_vit, write_npz
from tools.pretrain.augment import PORTRAIT, scenes
from tools.pretrain.data import Sprites, load_sprites

# ImageNet statistics: the default normalisation of every task.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

TEACHER, TEACHER_SIZE = "dinov2_s14", 56  # pixels: the scenes are enlarged to 4 x 4 patches

_PORTRAIT_VARIANCE = 0.05  # of a portrait's pixels, roughly: brings the two losses to one size


def class_weights(sprites: Sprites, shares: tuple[float, ...]) -> np.ndarray:
    """float32 [classes] sampling weights: each source has its share, its classes equal parts."""
    weights = np.zeros(len(sprites.source), np.float32)
    for source, share in enumerate(shares):
        of_source = sprites.source == source
        weights[of_source] = share / max(of_source.sum(), 1)
    return weights


def make_step(config, model: ViT, sprites: Sprites, optimiser: optax.GradientTransformation):
    """The jitted ``step(state) -> (state, metrics)``; `state` is donated."""
    log_weights = jnp.log(class_weights(sprites, config.shares))
    teacher = load_vit(TEACHER, config.teacher) if config.teacher else None

    def loss_fn(params, key, sprites, strength):
        draw, paint, drop = jax.random.split(key, 3)
        classes = jax.random.categorical(draw, log_weights, shape=(config.batch_size,))
        images, portraits = scenes(paint, sprites, classes, strength)
        features = model.apply(
            {"params": params["base"]},
            (images - MEAN) / STD,
            train=config.drop_path_rate > 0,
            drop_path_rate=config.drop_path_rate,
            rngs={"dropout": drop},
        )
        if teacher is not None:
            size = (config.batch_size, TEACHER_SIZE, TEACHER_SIZE, 3)
            large = (jax.image.resize(images, size, "bicubic") - MEAN) / STD
            token = jax.lax.stop_gradient(teacher_features(*teacher, large))
            token = (token - token.mean(0)) / (token.std(0) + 1e-3)
            imitated = features @ params["imitate"] + params["imitate_bias"]
            loss = jnp.square(imitated - token).mean()
            return loss, {"loss": loss}
        logits = features @ params["kernel"] + params["bias"]
        targets = optax.smooth_labels(
            jax.nn.one_hot(classes, logits.shape[-1]), config.label_smoothing
        )
        classification = optax.softmax_cross_entropy(logits, targets).mean()
        drawing = jnp.square(features @ params["draw"] + params["draw_bias"] - portraits)
        drawing = drawing.mean() / _PORTRAIT_VARIANCE
        loss = classification + config.portrait_weight * drawing
        return loss, {
            "loss": loss,
            "drawing": drawing,
            "accuracy": (logits.argmax(-1) == classes).mean(),
        }

    def step(state, sprites):
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        strength = config.strength * jnp.minimum(state["step"] / config.ramp_steps, 1.0)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state["params"], key, sprites, strength)
        updates, optimiser_state = optimiser.update(grads, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {
            "step": state["step"] + 1,
            "params": params,
            "optimiser": optimiser_state,
        }, metrics

    return jax.jit(step, donate_argnums=0)


def init_mimetic(config: ViTConfig, key: jax.Array) -> dict:
    """Initial parameters after Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers"
    (ICML 2023): within a head query @ key.T is near 0.7 (Z + I), value @ out near 0.4 (Z - I), Z
    with variance 1/d, and positions are sines and cosines. It helps a ViT that sees few images.
    """
    base = init_base(config, key)
    rng = np.random.default_rng(0)
    d, heads = config.width, config.num_heads
    attention = base["Transformer"]["encoderblock"]["MultiHeadDotProductAttention_1"]

    def factor(noise: float, identity: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
        target = noise * rng.normal(0, d**-0.5, (d, d)) + identity * np.eye(d)
        u, s, vt = np.linalg.svd(target)
        return u[:, :rank] * np.sqrt(s[:rank]), vt[:rank].T * np.sqrt(s[:rank])

    pairs = [[factor(0.7, 0.7, d // heads) for _ in range(heads)] for _ in range(config.depth)]
    for i, name in enumerate(("query", "key")):
        kernel = np.stack([np.concatenate([pair[i] for pair in block], 1) for block in pairs])
        attention[name]["kernel"] = jnp.asarray(kernel, jnp.float32)
    values = [factor(0.4, -0.4, d) for _ in range(config.depth)]
    attention["value"]["kernel"] = jnp.asarray(np.stack([v for v, _ in values]), jnp.float32)
    attention["out"]["kernel"] = jnp.asarray(np.stack([o.T for _, o in values]), jnp.float32)

    line = np.arange(config.grid)[:, None] / 100.0 ** (np.arange(d // 4) / (d // 4))
    wave = np.concatenate([np.sin(line), np.cos(line)], 1)  # [grid, d / 2]
    table = np.zeros((1, config.num_tokens, d))
    table[0, 1:, : d // 2] = np.repeat(wave, config.grid, 0)
    table[0, 1:, d // 2 :] = np.tile(wave, (config.grid, 1))
    base["Transformer"]["posembed_input"]["pos_embedding"] = jnp.asarray(table, jnp.float32)
    return base


def make_optimiser(config) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks (orthogonalised momentum), AdamW for the rest."""

    def schedule(peak):
        return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup_steps, config.steps)

    def matrices(params):
        def dimensions(path, leaf):
            stacked = "encoderblock" in jax.tree_util.keystr(path) and leaf.ndim == 3
            return optax.contrib.MuonDimensionNumbers(-2, -1) if stacked else None

        return jax.tree_util.tree_map_with_path(dimensions, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(config.muon_learning_rate),
            weight_decay=config.weight_decay,
            adam_learning_rate=schedule(config.adam_learning_rate),
            adam_b2=0.95,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def init_state(config, model: ViT, num_classes: int, optimiser) -> dict:
    params = {
        "base": init_mimetic(model.config, jax.random.key(config.seed)),
        "kernel": jnp.zeros((model.config.width, num_classes)),
        "bias": jnp.zeros((num_classes,)),
        "draw": jnp.zeros((model.config.width, PORTRAIT)),
        "draw_bias": jnp.zeros((PORTRAIT,)),
    }
    if config.teacher:
        width = get_variant(TEACHER).width
        params |= {
            "imitate": jnp.zeros((model.config.width, width)),
            "imitate_bias": jnp.zeros((width,)),
        }
    return {"step": jnp.zeros((), jnp.int32), "params": params, "optimiser": optimiser.init(params)}


def train(config, workdir: Path) -> Path:
    """Runs the recipe to its end; returns the path of the weights."""
    from orbax.checkpoint import v1 as ocp

    workdir.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(config.fonts, config.emoji, workdir / "sprites.npz")
    model = ViT(get_variant(config.variant))
    optimiser = make_optimiser(config)
    state = init_state(config, model, len(sprites.count), optimiser)
    checkpoints = sorted(workdir.glob("checkpoint_*"))
    if checkpoints:
        state = ocp.load_pytree(checkpoints[-1], state)
        logging.info("resumed from %s", checkpoints[-1])
    step = make_step(config, model, sprites, optimiser)
    device_sprites = jax.tree.map(jnp.asarray, sprites)
    weights = workdir / f"{config.variant}.npz"
    history, start = [], time.monotonic()
    while (done := int(state["step"])) < config.steps:
        state, metrics = step(state, device_sprites)
        history.append(metrics)
        done += 1
        if done % config.log_every == 0:
            means = {k: float(np.mean([m[k] for m in history])) for k in history[0]}
            if not np.isfinite(means["loss"]):
                raise FloatingPointError(f"The loss is {means['loss']} at step {done}.")
            rate = len(history) * config.batch_size / (time.monotonic() - start)
            logging.info("step %d %s %.0f images/s", done, means, rate)
            history, start = [], time.monotonic()
        if done % config.save_every == 0 or done == config.steps:
            ocp.save_pytree(workdir / f"checkpoint_{done:07d}", state)
            write_npz(weights, model.config, state["params"]["base"], np.float16)
    return weights


_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and weights go.", required=True)


def main(_):
    logging.info("wrote %s", train(_CONFIG.value, Path(_WORKDIR.value).absolute()))


if __name__ == "__main__":
    app.run(main)
