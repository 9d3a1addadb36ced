"""Where tasks change the network: the size of increments by block and layer, and shared spaces."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fact_jax.algebra.increments import Increments
from fact_jax.algebra.spectra import norms, similarity
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.load import load_factors
from fact_jax.report.blocks import Figure
from fact_jax.report.figures import NARROW, WIDE, new_figure, panels, tidy
from fact_jax.report.palette import INK
from fact_jax.report.sections import Section, short_name
from fact_jax.report.study import System
from fact_jax.report.tables import headline

_NAMES = ("q", "k", "v", "o", "MLP in", "MLP out")  # of the six sites
_Shares = dict[str, np.ndarray]  # by task [six sites, blocks]: squared norms, as shares of the task


def change_figures(systems: Sequence[System], section: Section) -> list[Figure]:
    """Figures of the best system whose factor files are there and hold low-rank increments alone.

    No figures if there is no such system. A task is shown by its first seed.
    """
    means = [(value.mean, s) for s in systems if (value := headline(s, section)) is not None]
    for _, system in sorted(means, key=lambda pair: -pair[0]):
        if tasks := _increments(system, section):
            return [
                _norm_figure(system, section, tasks),
                *([_similarity_figure(system, section, tasks)] if len(tasks) > 1 else []),
            ]
    return []


def _increments(system: System, section: Section) -> dict[str, tuple[Increments, ViTConfig]]:
    """Increments by task; none if those of a task cannot be had, or are all zero."""
    tasks: dict[str, tuple[Increments, ViTConfig]] = {}
    for name in section.tasks:
        result = min((r for r in system.results if r.task == name), key=lambda r: r.seed)
        path = Path(result.workdir) / "factors" / f"{result.cell}.safetensors"
        if not path.exists():
            return {}
        try:
            task = load_factors(path)
        except UserError as error:
            warnings.warn(
                f"{error} The figures of changes are without {system.label}.", stacklevel=2
            )
            return {}
        config = ViTConfig(**task.metadata["vit"])
        try:
            tasks[name] = Increments.of(task.method, task.factors, config), config
        except UserError:  # a method with changes that are no increments
            return {}
    return tasks if all(increments.norm for increments, _ in tasks.values()) else {}


def _norm_figure(
    system: System, section: Section, tasks: dict[str, tuple[Increments, ViTConfig]]
) -> Figure:
    shares: _Shares = {}
    for name, of_task in tasks.items():
        squares = np.stack(list(norms(*of_task).values())) ** 2
        shares[name] = squares / squares.sum()
    total = np.mean([share.sum(axis=1) for share in shares.values()], axis=0)
    most, (_, config) = _NAMES[int(total.argmax())], next(iter(tasks.values()))
    ratio = config.mlp_dim // config.width
    caption = (
        f"{section.title}: where {system.label} changes the network. A field is a layer of a block "
        "(the first block is at the left); the stronger its colour, the larger is its share of the "
        f"task's squared increments. In the mean of the tasks, {most} takes the most, "
        f"{100 * total.max():.0f} %. Both layers of the MLP have {ratio} times the weights of each "
        "other layer."
    )
    alt = "; ".join(
        f"{name}: " + ", ".join(f"{n} {100 * s:.0f} %" for n, s in zip(_NAMES, rows, strict=True))
        for name, rows in ((task, share.sum(axis=1)) for task, share in shares.items())
    )
    figures = [_norm_panels(system, shares, *size) for size in ((WIDE, 4), (NARROW, 2))]
    return Figure(f"{section.name}-changes", figures[0], alt, caption, figures[1])


def _norm_panels(system: System, shares: _Shares, width: float, columns: int) -> Any:
    columns = min(columns, len(shares))
    figure = new_figure(width, 0.4 + 1.9 * -(-len(shares) // columns))
    largest = max(float(share.max()) for share in shares.values())
    axes = panels(figure, len(shares), columns, sharex=True, sharey=True)
    for axis, (task, share) in zip(axes, shares.items(), strict=True):
        tidy(axis, short_name(task), grid="")
        _heat(axis, share, largest, system.style.color)
        axis.set_yticks(range(len(SITES)), _NAMES)
        blocks = share.shape[1]
        axis.set_xticks([0, blocks - 1], ["1", str(blocks)])
    axes[-1].set_xlabel("block")
    return figure


def _heat(axis: Any, values: np.ndarray, largest: float, color: str) -> None:
    """Fields from clear to the colour, for light and dark pages alike."""
    from matplotlib.colors import to_rgb

    colors = np.zeros((*values.shape, 4))
    colors[..., :3] = to_rgb(color)
    colors[..., 3] = values / largest
    axis.imshow(colors, aspect="auto", interpolation="none")


def _similarity_figure(
    system: System, section: Section, tasks: dict[str, tuple[Increments, ViTConfig]]
) -> Figure:
    names = [short_name(task) for task in tasks]
    nearness = similarity([increments for increments, _ in tasks.values()])
    titles = ("what is read (U)", "what is written (V)")
    parts = dict(zip(titles, nearness, strict=True))
    apart = ~np.eye(len(names), dtype=bool)
    means = [float(matrix[apart].mean()) for matrix in nearness]
    caption = (
        f"{section.title}: what the tasks of {system.label} have in common. A field compares the "
        "directions of two tasks by the mean squared cosine of their principal angles: 1 is the "
        f"same space, 0 has no common direction. Two different tasks have {means[0]:.2f} in what "
        f"they read and {means[1]:.2f} in what they write, in the mean."
    )
    alt = f"Similarity of {', '.join(tasks)}: {means[0]:.2f} read and {means[1]:.2f} written."
    figures = [
        _similarity_panels(system, names, parts, width, columns)
        for width, columns in ((WIDE, 2), (NARROW, 1))
    ]
    return Figure(f"{section.name}-similarity", figures[0], alt, caption, figures[1])


def _similarity_panels(
    system: System, names: list[str], parts: dict[str, np.ndarray], width: float, columns: int
) -> Any:
    height = min(0.9 + 0.4 * len(names), 0.9 * width / columns)
    figure = new_figure(width, 0.3 + height * (2 // columns))
    for axis, (title, matrix) in zip(panels(figure, 2, columns), parts.items(), strict=True):
        tidy(axis, title, grid="")
        _heat(axis, matrix.clip(0, 1), 1.0, system.style.color)
        axis.set_yticks(range(len(names)), names)
        axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        if len(names) <= 8:
            for (i, j), value in np.ndenumerate(matrix):
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=INK)
    return figure
