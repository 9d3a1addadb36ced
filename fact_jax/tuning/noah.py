"""NOAH: prompts, LoRA and adapters in every block, with widths that are searched for.

`NOAH` is the supernet: one set of factors, whose first tokens, columns and hidden values serve
every width up to the largest. `NOAHSubnet` is one architecture, stored without the rest.
Letters: `l` layer, `d` width of the ViT, `w` largest width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fact_jax.backbone.adaptation import Adaptation, Bottleneck, LowRank, Prompts
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import RATE, SCALE, SIZE, Each, Real, Whole, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Base, Factors, Scale, checked


def _init(key: jax.Array, depth: int, d: int, w: int) -> Factors:
    """Draws the initial factors as the released net does; no family begins at zero.

    Its constructor ends by drawing every Linear layer anew, also LoRA's and the adapters'.
    """
    keys = jax.random.split(key, 5)
    down, up = (depth, d, w), (depth, w, d)
    shapes = {"lora_A": down, "lora_B": (depth, w, 3 * d), "down": down, "up": up}
    drawn = {
        name: 0.02 * jax.random.normal(subkey, shape, jnp.float32)
        for subkey, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    bound = (6 / (d * (w + 1))) ** 0.5  # Xavier's, as PyTorch has it for [1, w, d]
    return {
        "prompts": uniform(keys[0], (depth, w, d), bound),
        **drawn,
        "down_bias": jnp.zeros((depth, w), jnp.float32),
        "up_bias": jnp.zeros((depth, d), jnp.float32),
    }


def _adaptation(factors: Factors, widths: Int[Array, "3 l"]) -> Adaptation:
    """The adaptation in which only the first `widths` of each family and block take part."""
    d = factors["prompts"].shape[2]
    largest = (factors["prompts"].shape[1], factors["lora_A"].shape[2], factors["down"].shape[2])
    prompts, lora, adapters = (
        jnp.arange(w, dtype=jnp.int32)[None] < row[:, None]
        for w, row in zip(largest, widths, strict=True)
    )
    shares = adapters.astype(jnp.float32)
    down = factors["down"] * shares[:, None]
    bottleneck = Bottleneck(
        down,
        factors["up"],
        factors["down_bias"] * shares,
        factors["up_bias"] * shares[:, :1],
        activation="quick_gelu",  # 0 at 0
    )
    a = factors["lora_A"] * lora.astype(jnp.float32)[:, None]
    pairs = [LowRank(a, factors["lora_B"][..., i * d : (i + 1) * d]) for i in range(3)]
    return Adaptation(
        q=pairs[0],
        k=pairs[1],
        v=pairs[2],
        prompts=_prompts(factors["prompts"], prompts),
        bypasses={"after_mlp": (bottleneck,)},
    )


def _prompts(tokens: Array, used: Bool[Array, "l w"]) -> Prompts:
    """The `used` tokens of each block; a block without any keeps those of the last that had some.

    No block after such a gap may have prompts again; `NOAHSubnet._appended` allows that.
    """
    layers, has = jnp.arange(len(used), dtype=jnp.int32), used[:, 0]
    last = jax.lax.cummax(jnp.where(has, layers, -1))
    seen = jnp.where(last[:, None] >= 0, used[jnp.maximum(last, 0)], False)
    return Prompts(tokens, jnp.broadcast_to(~has[:, None], used.shape), ~seen)


_ABOUT = About(
    "Zhang, Zhou & Liu, Neural Prompt Search, 2022",
    "ZhangYuanhan-AI/NOAH, model/supernet_vision_transformer_timm.py, "
    "model/module/adapter_super.py, supernet_engine_prompt.py",
    "code",
    (
        "The prompt at the input is left out: nothing reads it.",
        "NOAH drops entries of the input of A in training; here entries of its output are dropped.",
    ),
)


@dataclasses.dataclass(frozen=True)
class NOAH:
    """The supernet, and how it is searched; the settings have the names of the released code.

    Attributes:
      families: prompts, LoRA and adapters.
      widths: of which each family takes one in each of its first blocks.
      depths: of which each family takes one, as the number of these blocks; empty: quarters of the
        ViT's depth.
      supernet_epochs: epochs of the supernet.
      supernet_learning_rate: its learning rate.
      limit: most numbers of an architecture, including `prompt_positions` times d.
      prompt_positions: positions of the released code's prompt; 0: as many as the largest width.
      population: architectures of a generation.
      parents: how many of the best so far have offspring (all, while there are fewer).
      mutations: architectures of a generation that are mutated parents.
      crossovers: architectures of a generation that are crossed parents; the rest is random.
      generations: of the search.
      mutation_probability: of a family to change in a mutation.
      depth_probability: of a family that changes to change its depth.
      scale: not used.
    """

    about: ClassVar[About] = _ABOUT
    families: ClassVar[tuple[str, ...]] = ("prompts", "lora", "adapters")
    widths: tuple[int, ...] = setting((1, 5, 10), Each(SIZE))
    depths: tuple[int, ...] = setting((), Each(SIZE, least=0))
    supernet_epochs: int = setting(500, SIZE)
    supernet_learning_rate: float = setting(5e-4, RATE)
    limit: int = setting(640_000, Whole(1))
    prompt_positions: int = setting(0, Whole(0))
    population: int = setting(50, SIZE)
    parents: int = setting(10, SIZE)
    mutations: int = setting(25, Whole(0, SIZE.high))
    crossovers: int = setting(25, Whole(0, SIZE.high))
    generations: int = setting(15, SIZE)
    mutation_probability: float = setting(0.2, Real(0, 1))
    depth_probability: float = setting(0.4, Real(0, 1))
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def depths_of(self, config: ViTConfig) -> tuple[int, ...]:
        quarters = tuple(sorted({max(1, config.depth * i // 4) for i in (1, 2, 3, 4)}))
        depths = self.depths or quarters
        if max(depths) > config.depth or min(depths) < 1:
            raise UserError(f"depths are {depths}; the ViT has {config.depth} blocks.")
        return depths

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        return _init(key, config.depth, config.width, max(self.widths))

    @checked
    def adaptation(
        self, factors: Factors, config: ViTConfig, scale: Scale = None, choice: Array | None = None
    ) -> Adaptation:
        """The adaptation of an architecture `choice`, widths [3, l] by family; None: the largest
        everywhere. Its prompts must have no gap; sampled and searched architectures have none."""
        if choice is None:
            choice = jnp.full((3, config.depth), max(self.widths), jnp.int32)
        return _adaptation(factors, choice)

    def sample(self, key: jax.Array, config: ViTConfig) -> Int[Array, "3 l"]:
        """A random architecture: a depth for each family, and a width for each block up to it."""
        key_depth, key_width = jax.random.split(key)
        depths, widths = (
            jnp.asarray(self.depths_of(config), jnp.int32),
            jnp.asarray(self.widths, jnp.int32),
        )
        depth = jax.random.choice(key_depth, depths, (3, 1))
        width = jax.random.choice(key_width, widths, (3, config.depth))
        return jnp.where(jnp.arange(config.depth, dtype=jnp.int32)[None] < depth, width, 0)

    def count(self, choice: Any, config: ViTConfig) -> int:
        """Numbers of an architecture, as the released code counts them for its limit: the blocks'
        factors, the (idle) prompts at the input and their whole table of positions."""
        positions = self.prompt_positions or max(self.widths)
        idle = (int(choice[0][0]) + positions) * config.width
        return NOAHSubnet.of(choice).count(config) + idle

    def subnet(self, factors: Factors, choice: Any) -> tuple[NOAHSubnet, Factors]:
        """The architecture as a method, and its factors, cut out of the supernet's."""
        method = NOAHSubnet.of(choice)
        return method, method.cut(factors)


def _widths() -> Any:
    """A field for the width of a family in every block."""
    return dataclasses.field(metadata={"allowed": Each(Whole(0, SIZE.high))})


@dataclasses.dataclass(frozen=True)
class NOAHSubnet:
    """One architecture: the width of each family in each block, 0 for none.

    Each factor is one array with the rows of all blocks, block 0 first. `scale` is not used.
    """

    about: ClassVar[About] = _ABOUT
    prompts: tuple[int, ...] = _widths()
    lora: tuple[int, ...] = _widths()
    adapters: tuple[int, ...] = _widths()
    scale: float = setting(1.0, SCALE, acts=False)

    # The family of each array's rows, and their axis in the supernet's array.
    _ARRAYS: ClassVar[dict[str, tuple[str, int]]] = {
        "prompts": ("prompts", 1),
        "lora_A": ("lora", 2),
        "lora_B": ("lora", 1),
        "down": ("adapters", 2),
        "down_bias": ("adapters", 1),
        "up": ("adapters", 1),
        "up_bias": ("adapters", 0),
    }

    def __post_init__(self) -> None:
        check_fields(self)

    @staticmethod
    def of(choice: Any) -> NOAHSubnet:
        prompts, lora, adapters = (tuple(int(w) for w in row) for row in choice)
        return NOAHSubnet(prompts, lora, adapters)

    @property
    def choice(self) -> np.ndarray:
        return np.array([self.prompts, self.lora, self.adapters])

    def count(self, config: ViTConfig) -> int:
        """Numbers of the factors."""
        d = config.width
        adapters = sum(2 * d * w + w + d for w in self.adapters if w)
        return d * sum(self.prompts) + 4 * d * sum(self.lora) + adapters

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        if {len(row) for row in (self.prompts, self.lora, self.adapters)} != {config.depth}:
            raise UserError(f"A width for each of the ViT's {config.depth} blocks is needed.")
        w = max(1, int(self.choice.max()))
        return self.cut(_init(key, config.depth, config.width, w))

    def cut(self, factors: Factors) -> Factors:
        """The supernet's factors without what this architecture does not use."""
        cut = {}
        for name, (family, axis) in self._ARRAYS.items():
            value = factors[name]
            if axis == 0:
                cut[name] = value[np.flatnonzero(getattr(self, family))]
                continue
            rows = jnp.moveaxis(value, axis, 1)
            cut[name] = jnp.concatenate([rows[i, :w] for i, w in enumerate(getattr(self, family))])
        return cut

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        full = {}
        for name, (family, axis) in self._ARRAYS.items():
            widths, value = getattr(self, family), factors[name]
            w = max(1, *widths)
            if axis == 0:
                blocks = np.flatnonzero(widths)
                full[name] = (
                    jnp.zeros((config.depth, *value.shape[1:]), jnp.float32).at[blocks].set(value)
                )
                continue
            blocks = np.repeat(np.arange(config.depth), widths)
            places = np.concatenate([np.arange(width) for width in widths])
            rows = jnp.zeros((config.depth, w, *value.shape[1:]), jnp.float32)
            full[name] = jnp.moveaxis(rows.at[blocks, places].set(value), 1, axis)
        adaptation = _adaptation(full, jnp.asarray(self.choice, jnp.int32))
        if len(self._runs) < 2:
            return adaptation
        return dataclasses.replace(adaptation, prompts=self._appended(full["prompts"]))

    @property
    def _runs(self) -> list[range]:
        """Runs of consecutive blocks with prompts: the widths (5, 0, 10) have two runs."""
        runs: list[range] = []
        for block in np.flatnonzero(self.prompts).tolist():
            if runs and runs[-1].stop == block:
                runs[-1] = range(runs[-1].start, block + 1)
            else:
                runs.append(range(block, block + 1))
        return runs

    def _appended(self, tokens: Array) -> Prompts:
        """Prompts [l, p, d] with separate places for every run of blocks.

        In the released code (the supernet's `Block.forward`) a block removes as many prompts as the
        block before it has, and puts its own in. After a block without prompts it removes none, so
        that the prompts of an earlier run stay to the end.
        """
        layers, widths = np.arange(len(self.prompts))[:, None], np.array(self.prompts)[:, None]
        places, inherited, hidden = [], [], []
        for run in self._runs:
            place = np.arange(widths[run.start : run.stop].max())
            inside = (layers >= run.start) & (layers < run.stop)
            seen = np.where(layers < run.stop, inside * widths, widths[run.stop - 1])
            places.append(tokens[:, : len(place)])
            inherited.append(np.broadcast_to(~inside, (len(layers), len(place))))
            hidden.append(place >= seen)
        joined = (np.concatenate(part, axis=1) for part in (inherited, hidden))
        return Prompts(jnp.concatenate(places, axis=1), *map(jnp.asarray, joined))
