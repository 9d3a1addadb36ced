"""The pictures of `configs/many_tasks.py`, as folders: two classes of a bundled data set a task.

    python -m benchmarks.pairs --out runs/pairs [--tasks 100] [--shots 20] [--split test]

Training pictures are the first of each class in train800, test pictures all of the class in
--split. DIR/pictures holds each picture once; a task's folder, such as DIR/digits_3_8, has links
to the classes, DIR/digits_3_8/train/3 and so on.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from configs import many_tasks
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.data.tasks import TEST, TRAIN

SIDE = 32  # pixels, the quickstart's
SHOTS = 20  # training pictures a class


def class_names(data: str) -> list[str]:
    """Names of the classes of a bundled data set, which can be names of folders."""
    opened = open_task(get_task(data), DataSettings(image_size=SIDE))
    names = opened.class_names or [f"place {i}" for i in range(opened.task.num_classes)]
    return [name.replace("/", " or ") for name in names]


def write_pictures(folder: Path, data: str, shots: int, split: str) -> None:
    """Writes the pictures of a data set to FOLDER/{train,test}/CLASS/NUMBER.png."""
    opened = open_task(get_task(data), DataSettings(image_size=SIDE))
    for part, source, most in (("train", TRAIN, shots), ("test", split, None)):
        images, labels = opened.load(source)
        for label, name in enumerate(class_names(data)):
            target = folder / part / name
            target.mkdir(parents=True, exist_ok=True)
            for row in np.flatnonzero(labels == label)[:most]:
                Image.fromarray(images[row]).save(target / f"{row}.png")


def write_pairs(folder: Path, tasks: Sequence[str], shots: int = SHOTS, split: str = TEST) -> None:
    """Writes the folders of tasks, named as in `configs/many_tasks.py`, and their pictures."""
    wanted = [task.split("_")[1:] for task in tasks]
    names = {}
    for data in dict.fromkeys(data for data, _, _ in wanted):
        names[data] = class_names(data)
        write_pictures(folder / "pictures" / f"{data}-{shots}-{split}", data, shots, split)
    for data, *pair in wanted:
        for part in ("train", "test"):
            classes = folder / "_".join((data, *pair)) / part
            classes.mkdir(parents=True, exist_ok=True)
            for label in pair:
                name = names[data][int(label)]
                link, place = classes / name, folder / "pictures" / f"{data}-{shots}-{split}"
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(place / part / name, classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--tasks", default=str(len(many_tasks.PAIRS)), help="how many")
    parser.add_argument("--shots", type=int, default=SHOTS, help="training pictures a class")
    parser.add_argument("--split", default=TEST, help="of the test pictures; val200 to choose by")
    args = parser.parse_args()
    tasks = many_tasks.get_config(args.tasks).tasks.split(",")
    write_pairs(args.out, tasks, args.shots, args.split)
    print(f"Wrote {len(tasks)} tasks to {args.out}.")


if __name__ == "__main__":
    main()
