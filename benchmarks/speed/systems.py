"""The systems that step.py compares, by name."""

from typing import NamedTuple

FORWARD = "forward"  # through all tokens of all blocks: what FLOPs are compared with
# A system's program, and behind commas its settings; "dropout" has the rates of FacT's training.
OURS = (
    "ours: FacT-TT 16",
    "ours: FacT-TT 16, dropout",
    "ours: FacT-TT 16, remat=attention",
    "ours: FacT-TT 16, remat=block",
    "ours: FacT-TT 16, dropout, remat=block",
    "ours: FacT-TT 16, attention=cudnn",
    "ours: FacT-TK 32",
    "ours: FacT-TK 32, dropout",
    "ours: linear",
    "ours: full",
    "ours: evaluation",
    "ours: evaluation, attention=cudnn",
)
PEERS = (
    "torch: FacT-TT 16",
    "torch: FacT-TT 16, dropout",
    "torch: peft LoRA 8",
    "torch: full",
    "torch: evaluation",
)


class System(NamedTuple):
    """The program of a system, the rate of its dropout, and settings of its network."""

    program: str
    rate: float | None
    settings: dict[str, str]


def system(name: str) -> System:
    """A system by its name."""
    program, *words = name.rsplit(": ", 1)[-1].split(", ")
    settings = dict(word.split("=") for word in words if "=" in word)
    return System(program, 0.1 if "dropout" in words else None, settings)
