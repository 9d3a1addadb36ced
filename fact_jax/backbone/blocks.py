"""The blocks of a Vision Transformer, one after the other, with what the backward pass keeps.

The first and the last block stand outside the scan over the others: the first needs no gradient of
its input, and of the last only the class token is read, where the features are the class token's.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fact_jax.backbone.adaptation import Adaptation, override
from fact_jax.backbone.block import Block, Mode
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.dense import RANK_VALUES

# Names of the values that a block keeps for the backward pass besides its input (setting `remat`).
# The rest is computed again: it is elementwise, of rank r, or a slice of the stacked weights, which
# would be a copy of the model.
_KEPT = ("q", "k", "v", "attended", "middle", "fc1", "gate", RANK_VALUES)


def _policy(config: ViTConfig) -> Any:
    policies = jax.checkpoint_policies
    if config.remat == "block":
        return policies.nothing_saveable
    if config.attention == "xla":
        probabilities = ("probabilities",) if config.remat == "none" else ()
        return policies.save_only_these_names(*_KEPT, *probabilities)

    def fused(primitive: Any, *_: Any, **params: Any) -> Any:
        """Keeps the kernel's output and row sums, which have no name before its gradient."""
        return primitive.name.startswith("dot_product_attention_fwd")

    by_name = policies.save_only_these_names(*(name for name in _KEPT if name != "attended"))
    return policies.save_from_both_policies(by_name, fused)


def _layer(tree: Any, i: int | Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """All blocks, one after the other; `changes` and `mode` have a leading layer axis."""

    config: ViTConfig
    weights: dict[str, Any]
    changes: Adaptation
    mode: Mode
    collect: bool

    def __call__(self, x: Array) -> tuple[Array, Any]:
        """Tokens [b, n, d] -> tokens; `collect` adds every block's outputs.

        Where only the class token is read, tokens are [b, 1, d], unless all outputs are collected.
        """
        config, last = self.config, self.config.depth - 1
        if self.collect:
            return self._scan(x, 0, last + 1)
        if config.depth > 1:
            changes, mode = self._of(0)
            mode = dataclasses.replace(mode, increment_noise=None)  # the first block's level is 0
            x, _ = self._run(x, 0, (changes, mode))
        if config.depth > 2:
            x, _ = self._scan(x, 1, last)
        x, _ = self._run(x, last, self._of(last), class_only=config.pooling == "class")
        return x, None

    def _of(self, i: int) -> tuple[Adaptation, Mode]:
        changes: tuple[Adaptation, Mode] = _layer((self.changes, self.mode), i)
        return changes

    def _scan(self, x: Array, start: int, stop: int) -> tuple[Array, Any]:
        """Runs the blocks from `start` to before `stop` in a loop."""
        changes = jax.tree.map(lambda leaf: leaf[start:stop], (self.changes, self.mode))
        layers = (jnp.arange(start, stop, dtype=jnp.int32), changes)
        return jax.lax.scan(self._in_loop, x, layers, unroll=self.config.unroll)

    def _in_loop(self, x: Array, layer: Any) -> tuple[Array, Any]:
        return self._run(x, *layer, in_loop=not self.config.unroll)

    def _run(
        self,
        x: Array,
        i: int | Array,
        changes: tuple[Adaptation, Mode],
        *,
        class_only: bool = False,
        in_loop: bool = False,
    ) -> tuple[Array, Any]:
        block = functools.partial(Block, self.config, class_only=class_only, collect=self.collect)
        one: Any = functools.partial(_run_block, block)
        # Outside a loop XLA would identify the recomputed values with the first ones and keep them.
        one = jax.checkpoint(one, policy=_policy(self.config), prevent_cse=not in_loop)
        x, outputs = one(x, self.weights, i, changes)
        return x, {**outputs, "tokens": x} if self.collect else None


def _run_block(
    block: Callable[..., Block], x: Array, weights: dict[str, Any], i: Any, changes: Any
) -> tuple[Array, dict[str, Array]]:
    """Runs the i-th block, of all blocks' weights and its own changes and mode.

    A layer's weights are read here, inside the loop: sliced outside, they would be copied.
    """
    adaptation, mode = changes
    weights = override(_layer(weights, i), adaptation.weights)
    return block(weights=weights, changes=adaptation, mode=mode)(x)


def by_layer(mode: Mode, depth: int) -> Mode:
    """The mode of each block.

    It has keys of its own, a rate of stochastic depth that rises, and noise that falls.
    """
    noise = mode.increment_noise
    if noise is not None:
        mode = dataclasses.replace(mode, increment_noise=noise.by_layer(depth))
    if mode.key is None:
        return mode
    rate, path = mode.dropout_rate, mode.drop_path_rate
    return Mode(
        jax.random.split(mode.key, depth),
        None if rate is None else jnp.broadcast_to(rate, depth),
        None if path is None else jnp.linspace(0.0, 1.0, depth, dtype=jnp.float32) * path,
        mode.merged,
        mode.increment_noise,
    )
