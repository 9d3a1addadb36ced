"""The claims of the paper, as the study's record and that of few images answer them."""

import json
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy.stats import ttest_1samp

from benchmarks.accuracy.study_arms import Arm, arms_of, compared
from benchmarks.accuracy.study_tables import NONE, interval_text, p_cell, signed
from benchmarks.common import NAMES, RESULTS, markdown
from fact_jax.report.averages import seed_averages
from fact_jax.report.statistics import Comparison, holm

Record = Mapping[str, Any]
LEVEL = 0.05
MARGIN = 1.0  # points; "on par" is a difference that is certainly smaller


class Claim(NamedTuple):
    """A claim of the paper about two arms; `on_par` if it claims no more than equality."""

    text: str
    arm: str
    other: str
    on_par: bool = False


BEST_OTHER = "the best other"
CLAIMS = (
    Claim("FacT-TT is on par with the best other small method", "fact_tt", BEST_OTHER, True),
    Claim("FacT-TT is on par with LoRA", "fact_tt", "lora", True),
    Claim("FacT-TK is on par with LoRA", "fact_tk", "lora", True),
    Claim("FacT-TT beats full fine-tuning", "fact_tt", "full"),
    Claim("FacT-TT beats the linear probe", "fact_tt", "linear"),
    Claim("the smallest FacT-TT beats full fine-tuning", "fact_tt_smallest", "full"),
    Claim("the smallest FacT-TT beats VPT-deep", "fact_tt_smallest", "vpt_deep"),
    Claim("the smallest FacT-TT beats VPT-shallow", "fact_tt_smallest", "vpt_shallow"),
    Claim("the smallest FacT-TT beats BitFit", "fact_tt_smallest", "bitfit"),
    Claim("the smallest FacT-TK beats full fine-tuning", "fact_tk_smallest", "full"),
    Claim("the smallest FacT-TK beats VPT-deep", "fact_tk_smallest", "vpt_deep"),
    Claim("the smallest FacT-TK beats BitFit", "fact_tk_smallest", "bitfit"),
)


def best_other(arms: Mapping[str, Arm]) -> Arm | None:
    """The best on val200 of the methods that are neither FacT's nor move all weights."""
    others = [
        arm
        for name, arm in arms.items()
        if not name.startswith("fact_") and name != "full" and arm.validation is not None
    ]
    return max(others, key=lambda arm: arm.validation or 0.0, default=None)


def answer(claim: Claim, pair: Comparison, p_seeds: float | None, p_tasks: float | None) -> str:
    """The tests' answer to a claim, in words."""
    if claim.on_par:
        if pair.interval is None:
            return "open: one seed"
        low, high = pair.interval
        if low > -MARGIN:
            return "yes, within a point" if high < MARGIN else "yes, or better"
        return "no, it is worse" if high < -MARGIN else "open"
    if p_seeds is None:
        return "open: one seed"
    sign = "yes" if pair.difference > 0 else "no, it is worse"
    if p_seeds < LEVEL:
        everywhere = p_tasks is not None and p_tasks < LEVEL
        return sign if everywhere else f"{sign}, on these tasks"
    return "open"


def claims(record: Record) -> str:
    """The claims of the paper, with the difference, the tests, and an answer."""
    arms = arms_of(record, "main")
    best = best_other(arms)
    named = {**arms, **({BEST_OTHER: best} if best else {})}
    found = []
    for claim in CLAIMS:
        if claim.arm in named and claim.other in named:
            one, other = named[claim.arm], named[claim.other]
            if pair := compared(one, other):
                found.append((claim, one, other, pair))
    p_seeds = holm([pair.p_seeds for *_, pair in found])
    p_tasks = holm([pair.p_tasks for *_, pair in found])
    rows = []
    for (claim, one, other, pair), seeds, tasks in zip(found, p_seeds, p_tasks, strict=True):
        said = f"{claim.text} ({other.title})" if claim.other == BEST_OTHER else claim.text
        share = f"{100 * one.numbers / other.numbers:,.3g} %" if other.numbers else NONE
        cells = [
            said,
            answer(claim, pair, seeds, tasks),
            signed(pair.difference),
            interval_text(pair),
        ]
        rows.append([*cells, f"{pair.wins} of {pair.tasks}", p_cell(seeds), p_cell(tasks), share])
    head = ["claim", "answer", "difference, points", "95 % interval", "better on"]
    return markdown([*head, "p, seeds", "p, tasks", "of its numbers"], rows, texts=2)


FEW_SHOT, SHOTS = RESULTS / "fewshot_quickstart.json", (1, 4, 16)
FEW_SHOT_ORDER = ("full", "linear", "vpt_deep", "vpt_shallow", "bitfit", "lora", "noah", "fact_tk")


def few_images(record: Record) -> str:
    """FacT-TT less other methods, with few images of each class, by the number of images.

    Seeds are paired, because a seed draws the training images of all methods.
    """
    systems: dict[str, dict[str, dict[int, float]]] = {}
    for cell in record["cells"]:
        by_task = systems.setdefault(cell["method"], {})
        by_task.setdefault(cell["task"], {})[cell["seed"]] = cell["accuracy"]
    rows = []
    for other in FEW_SHOT_ORDER:
        texts = []
        for shots in SHOTS:
            tasks = [task for task in systems["fact_tt"] if task.endswith(f"_{shots}shot")]
            one, two = (seed_averages(systems[m], [tasks]) for m in ("fact_tt", other))
            less = [a - b for a, b in zip(one, two, strict=True)]
            low, high = ttest_1samp(less, 0.0).confidence_interval(0.95)
            mean = statistics.fmean(less)
            texts.append(f"{signed(mean)} ({signed(low)} to {signed(high)})")
        rows.append([NAMES[other], *texts])
    heads = [f"{shots} image{'s' * (shots > 1)} a class" for shots in SHOTS]
    return markdown(["FacT-TT less", *heads], rows)


def few_images_table() -> str:
    """The table of few images from its own record."""
    return few_images(json.loads(FEW_SHOT.read_text()))
