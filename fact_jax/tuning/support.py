"""Which methods work on which kinds of ViTs, as data.

A method that is in no rule works on every ViT. docs/methods.md shows the table.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fact_jax.backbone.config import VARIANTS, ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning import METHODS
from fact_jax.tuning.combination import Combination
from fact_jax.tuning.method import Method
from fact_jax.tuning.slices import SQUARE

# What the rules depend on.
TRAITS: dict[str, Callable[[ViTConfig], bool]] = {
    "an MLP of no multiple of the width": lambda vit: vit.mlp_dim % vit.width > 0,
    "gated MLPs": lambda vit: vit.mlp == "gated",
    "rotary positions": lambda vit: vit.positions == "rope",
    "relative positions": lambda vit: vit.positions == "relative",
    "attention pooling": lambda vit: vit.pooling == "attention",
    "missing biases": lambda vit: not (vit.key_bias and vit.patch_bias),
}
_SQUARE = (
    *("fact_tt", "fact_tk", "fact_cp", "fact_shared"),
    *("metatt", "metatt_heads", "metatt_tasks", "cara"),
)
_PROMPTS = ("vpt_shallow", "vpt_deep", "noah", "noah_subnet")


class Rule(NamedTuple):
    """A particularity of some methods on some ViTs.

    Attributes:
      methods: their names.
      trait: a name of `TRAITS`.
      works: whether they can be trained.
      reason: one sentence or more.
    """

    methods: tuple[str, ...]
    trait: str
    works: bool
    reason: str


RULES = (
    Rule(_SQUARE, "an MLP of no multiple of the width", False, f"{SQUARE}."),
    Rule(
        _SQUARE,
        "gated MLPs",
        True,
        "The gate stays frozen. FacT's tensor has 12 slices a block, of which 8 are of two MLP "
        "weights; the up projection stands in the place of fc1, and the down projection in that "
        "of fc2. With four more slices for the gate, ranks and published sizes would mean "
        "something else.",
    ),
    Rule(
        ("lora", "dora", "ssf", "efft", "noah", "noah_subnet"),
        "gated MLPs",
        True,
        "The gate stays frozen: `fc1` is the up projection and `fc2` the down projection.",
    ),
    Rule(
        _PROMPTS,
        "rotary positions",
        True,
        "Prompts have no place, so their queries and keys are not rotated, as those of registers.",
    ),
    Rule(
        _PROMPTS,
        "relative positions",
        True,
        "Prompts have no place, so the biases of their scores are zero.",
    ),
    Rule(
        _PROMPTS,
        "attention pooling",
        True,
        "The pooling head reads the patches alone; prompts act through the blocks.",
    ),
    Rule(
        ("bitfit",),
        "missing biases",
        True,
        "Biases that the published model does not have stay zero.",
    ),
)

# The columns of the table, each with a variant of its kind.
COLUMNS = {
    "ViT, MAE, DINOv2 with and without registers": "dinov2_b14_reg",
    "DINOv3": "dinov3_b16",
    "DINOv3 S+ and H+": "dinov3_h16plus",
    "CLIP": "clip_b16",
    "SigLIP 2 B": "siglip2_b16",
    "BEiT": "beit_b16",
    "SigLIP 2 So400m": "siglip2_so400m14",
}


def rules_of(name: str, config: ViTConfig) -> list[Rule]:
    """The rules for a method of this name on a ViT."""
    return [rule for rule in RULES if name in rule.methods and TRAITS[rule.trait](config)]


def check_supported(method: Method, config: ViTConfig, where: str = "") -> None:
    """Raises UserError for a method, or a part of a combination, that this ViT cannot take.

    `where` is said first.
    """
    for name in _names(method):
        for rule in rules_of(name, config):
            if not rule.works:
                raise UserError(
                    f"{where}Method {name} does not work on a ViT with {rule.trait}: {rule.reason} "
                    "docs/methods.md has the table of methods and ViTs."
                )


def _names(method: Method) -> Iterator[str]:
    if isinstance(method, Combination):
        for _, part in method.parts:
            yield from _names(part)
    else:
        yield from (name for name, kind in METHODS.items() if type(method) is kind)


def table() -> str:
    """The table of methods and kinds of ViTs in Markdown; its notes are the rules' reasons."""
    notes = {rule.reason: i for i, rule in enumerate(RULES, 1)}
    lines = [f"| method | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    for name in METHODS:
        cells = []
        for variant in COLUMNS.values():
            rules = rules_of(name, VARIANTS[variant])
            word = "yes" if all(rule.works for rule in rules) else "no"
            marks = ", ".join(str(notes[rule.reason]) for rule in rules)
            cells.append(f"{word} ({marks})" if marks else word)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    texts = [f"{i}. {reason}" for reason, i in notes.items()]
    return "\n".join([*lines, "", *texts])
