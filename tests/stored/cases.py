"""The points that are compared with PyTorch, and what fact-jax computes for them. No PyTorch here.

`make parity` compares these functions with the same ones of tests/parity/torch_*.py; `make test`
compares them with outputs of the latter that lie in outputs.npz (tests/parity/make_stored.py).
Inputs are drawn from NumPy's RandomState.uniform, whose bits are frozen (NEP 19): nothing but
outputs is stored. Everything is random, the biases, gains, head and V included, so that a swapped
or a forgotten parameter shows. Class-token inputs are small (as in trained ViTs), so that the
LayerNorm's eps shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from backbone_kinds import KINDS, tiny

from fact_jax import FacTTK, FacTTT, ViT, ViTConfig, features
from fact_jax.backbone.parameters import MAP_HEAD
from fact_jax.backbone.vit import init_base
from fact_jax.training.mesh import make_mesh
from fact_jax.training.recipe import PLAIN
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import TrainStep, epoch_key
from fact_jax.training.trial import Hyper, Trial, TrialState, logits_of, train_set

OUTPUTS = Path(__file__).parent / "outputs.npz"
# True float32 products also where a device's default is less.
SMALL = ViTConfig(
    width=48, depth=3, num_heads=3, mlp_dim=192, patch_size=4, image_size=16, precision="highest"
)
SMALL_DINO = dataclasses.replace(SMALL, layer_scale=True, image_size=36)  # a 9 x 9 position table


def relative_error(actual, expected) -> float:
    """max |a - b| / max |b| over one array: the figure that all tolerances here are about."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def relative_errors(actual: dict, expected: dict) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    return {name: relative_error(actual[name], expected[name]) for name in expected}


class Draw:
    """Uniform float32 numbers of a given standard deviation, bit for bit the same everywhere."""

    def __init__(self, seed: int):
        self.rng = np.random.RandomState(seed)

    def __call__(self, shape, std=1.0, mean=0.0) -> np.ndarray:
        return (mean + std * self.rng.uniform(-(3**0.5), 3**0.5, shape)).astype(np.float32)


def random_base(config: ViTConfig, seed: int) -> dict:
    """Parameters of a ViT in our layout, NumPy."""
    draw = Draw(seed)

    def leaf(keys, struct):
        name = "/".join(str(k.key) for k in keys)
        lacks = [] if config.key_bias else ["encoderblock/MultiHeadDotProductAttention_1/key/bias"]
        lacks += [] if config.patch_bias else ["embedding/bias"]
        if name.removeprefix("Transformer/") in lacks:
            return np.zeros(struct.shape, np.float32)
        inner = ("Transformer/encoder", "Transformer/pre_norm", MAP_HEAD)
        if not name.startswith(inner):  # patch embedding, class token, registers, position table
            fan_in = np.prod(struct.shape[:-1]) if name.endswith("kernel") else 1
            return draw(struct.shape, 0.003 * fan_in**-0.5)
        if name.endswith("kernel"):
            return draw(struct.shape, struct.shape[-2] ** -0.5)
        if "LayerScale" in name:
            return draw(struct.shape, 0.2, mean=0.5)
        return draw(struct.shape, 0.2, mean=float(name.endswith("scale")))

    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(leaf, structs)


def random_head(width: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    draw = Draw(seed)
    return {"kernel": draw((width, classes), width**-0.5), "bias": draw((classes,))}


def random_factors(method: FacTTT | FacTTK, config: ViTConfig, seed: int) -> dict[str, np.ndarray]:
    """Factors whose increment at scale 10 is about as large as the frozen kernels, V included."""
    draw, r = Draw(seed), method.rank
    structs = jax.eval_shape(lambda: method.init(jax.random.key(0), config))
    std = {"U": config.width**-0.5, "V": 0.1, "S": r**-0.5, "C": r**-0.5, "P": r**-0.5}
    return {name: draw(struct.shape, std[name]) for name, struct in structs.items()}


def digest(tree) -> str:
    """SHA-256 of a pytree of arrays."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


# --- Forward passes


@dataclasses.dataclass(frozen=True)
class VitCase:
    """A ViT's logits (DINOv2: class features), and every block's output."""

    config: ViTConfig
    image_size: int
    batch: int = 2
    classes: int = 7
    seed: int = 0

    def inputs(self) -> dict[str, Any]:
        size = self.image_size
        return {
            "base": random_base(self.config, self.seed),
            "head": random_head(self.config.width, self.classes, self.seed + 1),
            "images": Draw(self.seed + 2)((self.batch, size, size, 3)),
        }

    def ours(self, base, head, images) -> dict[str, np.ndarray]:
        return vit_outputs(self.config, base, head, images)


def vit_outputs(config: ViTConfig, base, head, images) -> dict[str, np.ndarray]:
    """{"logits", "block0", "block1", ...} of fact-jax."""

    @jax.jit
    def run(base, images):
        return ViT(config).apply({"params": base}, images, mutable="intermediates")

    x, state = run(base, images)
    logits = logits_of(head, x, head["bias"].size)
    blocks = state["intermediates"]["blocks"][0]["tokens"]  # [l, b, n, d]
    return {
        "logits": np.asarray(logits),
        **{f"block{i}": np.asarray(b) for i, b in enumerate(blocks)},
    }


@dataclasses.dataclass(frozen=True)
class KindCase:
    """The features of a kind of ViT (tests/backbone_kinds.py), and every block's output."""

    kind: str
    image_size: int = 16
    seed: int = 30

    @property
    def config(self) -> ViTConfig:
        return tiny(self.kind, precision="highest")

    def inputs(self) -> dict[str, Any]:
        size = self.image_size
        base = random_base(self.config, self.seed)
        return {"base": base, "images": Draw(self.seed + 1)((1, size, size, 3))}

    def ours(self, base, images) -> dict[str, np.ndarray]:
        return kind_outputs(ViT(self.config), base, images)


def kind_outputs(model: ViT, base, images) -> dict[str, np.ndarray]:
    """{"features", "block0", ...}; the features are those of the program that predicts."""
    apply = jax.jit(lambda b, x: model.apply({"params": b}, x, mutable="intermediates")[1])
    blocks = apply(base, images)["intermediates"]["blocks"][0]["tokens"]
    named = {f"block{i}": np.asarray(tokens) for i, tokens in enumerate(blocks)}
    return {"features": np.asarray(features(model, base, images)), **named}


# --- Logits and gradients of an adapted ViT


@dataclasses.dataclass(frozen=True)
class FactCase:
    """Logits, and the gradients of the mean cross-entropy for every factor and the head."""

    method: FacTTT | FacTTK
    config: ViTConfig = SMALL
    batch: int = 3
    classes: int = 7
    seed: int = 10

    def inputs(self) -> dict[str, Any]:
        size = self.config.image_size
        return {
            "base": random_base(self.config, self.seed),
            "trainable": {
                "factors": random_factors(self.method, self.config, self.seed + 1),
                "head": random_head(self.config.width, self.classes, self.seed + 2),
            },
            "images": Draw(self.seed + 3)((self.batch, size, size, 3)),
            "labels": np.arange(self.batch) % self.classes,
        }

    def ours(self, base, trainable, images, labels, **rates) -> dict[str, np.ndarray]:
        """{"logits", "U", "V", ..., "kernel", "bias"}, the latter ones gradients."""
        model = ViT(self.config)

        def loss_fn(trainable, base):
            adaptation = self.method.adaptation(trainable["factors"], self.config)
            x = features(model, base, images, adaptation, **rates)
            logits = logits_of(trainable["head"], x, self.classes)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        grads, logits = jax.jit(jax.grad(loss_fn, has_aux=True))(trainable, base)
        grads = {**grads["factors"], **grads["head"]}
        return {"logits": np.asarray(logits), **{k: np.asarray(v) for k, v in grads.items()}}


# --- 50 steps of AdamW


@dataclasses.dataclass(frozen=True)
class TrainCase:
    """10 epochs of 5 steps with the per-epoch schedule, without dropout.

    The rates and the weight decay are larger than FacT's, so that 50 steps show what they do.
    """

    method: FacTTT | FacTTK
    config: ViTConfig = SMALL
    examples: int = 42  # two are left out of every epoch
    batch_size: int = 8
    capacity: int = 45
    classes: int = 3
    padded_classes: int = 5
    epochs: int = 10
    schedule: tuple[tuple[str, float], ...] = (
        ("peak", 5e-3),
        ("epochs", 10),
        ("warmup_epochs", 2),
        ("minimum", 1e-5),
        ("warmup_start", 1e-6),
    )
    weight_decay: float = 0.1
    seed: int = 20

    def inputs(self) -> dict[str, Any]:
        rng, size = np.random.RandomState(self.seed + 3), self.config.image_size
        labels = np.arange(self.examples) % self.classes
        noise = rng.uniform(0, 200, (self.examples, size, size, 3))
        return {
            "base": random_base(self.config, self.seed),
            "trainable": {
                "factors": random_factors(self.method, self.config, self.seed + 1),
                "head": random_head(self.config.width, self.classes, self.seed + 2),
            },
            "images": (noise + 25 * labels[:, None, None, None]).astype(np.uint8),
            "labels": labels.astype(np.int32),
        }

    def order(self) -> np.ndarray:
        """Rows of the split in the order in which they are drawn, [epochs, examples].

        The same calls of jax.random that TrainStep.order makes with an epoch's key; PyTorch is fed
        these batches.
        """

        def of_epoch(epoch):
            key, _ = jax.random.split(epoch_key(self.seed, epoch))
            draw = jax.random.uniform(key, (self.capacity,))
            draw = jnp.where(jnp.arange(self.capacity) < self.examples, draw, jnp.inf)
            return np.asarray(jnp.argsort(draw))[: self.examples]

        return np.stack([of_epoch(e) for e in range(self.epochs)])

    def ours(self, base, trainable, images, labels) -> dict[str, np.ndarray]:
        """{"losses" [50], "U", "V", ..., "kernel", "bias"}, the latter ones after the last step."""
        mesh = make_mesh(self.batch_size, jax.devices()[:1])
        step = TrainStep(ViT(self.config), self.method, "imagenet", self.batch_size, mesh)
        data = train_set(images, labels, self.classes, self.capacity)
        pad = self.padded_classes - self.classes
        head = {
            k: np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, pad)]) for k, v in trainable["head"].items()
        }
        trainable = jax.tree.map(jnp.asarray, {"factors": trainable["factors"], "head": head})
        state = TrialState(trainable, PLAIN.init(trainable))
        losses = []
        for e in range(self.epochs):
            rate = learning_rate(e, **dict(self.schedule))
            hyper = Hyper(
                jnp.float32(rate),
                jnp.float32(self.weight_decay),
                jnp.float32(self.method.scale),
                dropout_rate=jnp.float32(0),
                drop_path_rate=jnp.float32(0),
            )
            state, epoch_losses = step.alone(base, state, Trial(data, hyper, self.seed), e)
            losses.append(epoch_losses[: self.examples // self.batch_size])
        head = state.trainable["head"]
        final = {
            **state.trainable["factors"],
            **{k: v[..., : self.classes] for k, v in head.items()},
        }
        return {"losses": np.concatenate(losses), **{k: np.asarray(v) for k, v in final.items()}}


# --- The points that `make test` holds

Case = VitCase | KindCase | FactCase | TrainCase

STORED: dict[str, Case] = {
    "vit_timm": VitCase(SMALL, 16),
    "vit_hugging_face": VitCase(dataclasses.replace(SMALL, layer_norm_eps=1e-12), 16),
    "dinov2": VitCase(SMALL_DINO, 36),
    "dinov2_interpolated": VitCase(SMALL_DINO, 20),
    **{f"kind_{kind}": KindCase(kind) for kind in KINDS},
    "kind_registers_fewer_patches": KindCase("registers", 8),
    "fact_tt": FactCase(FacTTT(5, scale=1.0)),
    "fact_tk_released": FactCase(FacTTK(8, scale=1.0)),
    "fact_tk_released_rank5": FactCase(FacTTK(5, scale=1.0)),
    "fact_tk_formula": FactCase(FacTTK(5, scale=1.0, mlp_cores="formula")),
    "train_tt": TrainCase(FacTTT(4)),
    "train_tk": TrainCase(FacTTK(4)),
}
