"""Draws a grid of training pictures of each task of the offline suite, for docs/offline_suite.md.

    python -m tools.draw_suite

A row is a class, with its name in front. Tasks of more than ten classes have two blocks of rows.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fact_jax.data import DataSettings, Examples, open_task
from fact_jax.data.tables.offline import OFFLINE
from fact_jax.data.tasks import TRAIN, Task

FOLDER = Path("docs/suite")
_SIDE, _GAP = 48, 2  # pixels of a picture, between pictures
_ROWS = 10  # of a block, at most
_COLOURS, _GREYS = 64, 16


class Layout(NamedTuple):
    """How many blocks of rows stand side by side, and the size of each.

    Attributes:
      blocks: number of blocks.
      rows: classes of a block.
      columns: pictures of a class.
      label: pixels for the name of a class.
    """

    blocks: int
    rows: int
    columns: int
    label: int

    def place(self, number: int) -> tuple[int, int]:
        """Left and upper end of the row of a class."""
        block, row = divmod(number, self.rows)
        width = self.label + self.columns * (_SIDE + _GAP) + 4 * _GAP
        return block * width, row * (_SIDE + _GAP)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the grid."""
        return self.place(self.blocks * self.rows)[0], self.rows * (_SIDE + _GAP)


def names_of(task: Task, names: list[str] | None) -> list[str]:
    """Names of the classes: the stored ones, or numbers where the label is a formula."""
    return names or [f"bin {number}" for number in range(task.num_classes)]


def draw(examples: Examples, names: list[str]) -> Image.Image:
    """The grid of the first pictures of each class."""
    blocks = -(-len(names) // _ROWS)
    columns = 10 if blocks == 1 else 6
    layout = Layout(blocks, -(-len(names) // blocks), columns, 8 + 6 * max(map(len, names)))
    grid = Image.new("RGB", layout.size, "white")
    pen = ImageDraw.Draw(grid)
    for number, name in enumerate(names):
        left, top = layout.place(number)
        pen.text((left + 2, top + _SIDE // 2 - 6), name, "black")
        for i, row in enumerate(np.flatnonzero(examples.labels == number)[:columns]):
            picture = Image.fromarray(examples.images[row])
            grid.paste(picture, (left + layout.label + i * (_SIDE + _GAP), top))
    return grid


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for task in OFFLINE.values():
        data = open_task(task, DataSettings(image_size=_SIDE))
        examples = data.load(TRAIN)
        grey = (examples.images == examples.images[..., :1]).all()
        grid = draw(examples, names_of(task, data.class_names))
        path = FOLDER / f"{task.name}.png"
        grid.quantize(_GREYS if grey else _COLOURS, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
