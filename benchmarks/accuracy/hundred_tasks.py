"""A hundred small tasks on one ViT: trained by one sweep, shrunk, mixed, combined and served.

    python -m benchmarks.hundred_tasks [--tasks 100] [--seeds 0,1] [--workdir DIR]
        [--out FILE.json]

The tasks and settings are those of `configs/many_tasks.py`; nothing is chosen here. Accuracies are
top-1 on the tasks' test pictures in %, means over the seeds where nothing else is said.

- `rounded`: the factor files at 4 bits a number, 1 of the head, as `fact-jax round` writes them;
- `finished`: the same after some epochs more that compute with these bits;
- `ensemble`: the seeds' probabilities averaged; `averaged`: their increments and heads averaged;
- `shared`: pairs of digits whose increments are added to those of the same pair of garments, of the
  first seed, beside `first_seed`, each task alone;
- `mixed_batch`: an image of each task by one bank, and by one merged network after the other;
- `server`: a picture of each task, answered by `fact-jax serve`.

With --split val200 the tasks are tested on validation pictures, to choose settings by.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.hundred_uses import Uses
from benchmarks.accuracy.pairs import SHOTS, write_pairs
from benchmarks.common import option_parser, write_json
from configs import many_tasks
from fact_jax.algebra.quantise import Bits
from fact_jax.cli.local import run_sweep
from fact_jax.cli.round import round_files
from fact_jax.data.tasks import TEST
from fact_jax.report.averages import stat
from fact_jax.serving.rounding import Target
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment

METHOD, PROBE = "fact_tt", "linear"
BITS = Bits(4, 1)


def config_of(args: argparse.Namespace, finish: bool = False) -> ConfigDict:
    """The config of a sweep, shortened as the options say; `finish`: of the one for few bits."""
    config = many_tasks.get_config(f"{args.tasks},finish" if finish else str(args.tasks))
    config.seeds = tuple(map(int, args.seeds.split(",")))
    config.data_dir = str(Path(args.workdir) / "pictures")
    if finish:
        config.start_from = str(Path(args.workdir) / "trained" / "factors")
    if args.epochs:
        config.epochs = args.epochs
    return config


def by_task(accuracies: dict[str, float]) -> dict[str, list[float]]:
    """Accuracies of cells, named task-method-seed, as a list for each task."""
    lists: dict[str, list[float]] = {}
    for cell, accuracy in accuracies.items():
        lists.setdefault(cell.partition("-")[0], []).append(accuracy)
    return lists


def means(accuracies: dict[str, list[float]]) -> dict[str, float]:
    return {task: stat(values).mean for task, values in accuracies.items()}


class Study:
    """The parts of the measurement, one after the other."""

    def __init__(self, args: argparse.Namespace, console: Console):
        self.args, self.console = args, console
        self.workdir, self.config = Path(args.workdir), config_of(args)
        self.tasks: list[str] = self.config.tasks.split(",")
        write_pairs(Path(self.config.data_dir), self.tasks, args.shots, args.split)
        self.results = run_sweep(self.config, str(self.workdir / "trained"), console)
        place = Path(self.config.data_dir)
        self.uses = Uses(self.config.variant, self.tasks, place, self.config.image_size)

    def of(self, method: str) -> list[Result]:
        """Results of a method."""
        return [result for result in self.results if result.method == method]

    def file(self, result: Result) -> Path:
        """The factor file of a trained task."""
        return self.workdir / "trained" / "factors" / f"{result.cell}.safetensors"

    def seeds(self) -> dict[str, list[Path]]:
        """FacT's factor files of each task."""
        files: dict[str, list[Path]] = {}
        for result in self.of(METHOD):
            files.setdefault(result.task, []).append(self.file(result))
        return files

    def rounded(self) -> dict[str, float]:
        """Mean accuracy of each task at few bits, without training."""
        folder = self.workdir / "rounded"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files = {self.file(r): folder / f"{r.cell}.safetensors" for r in self.of(METHOD)}
        round_files(files, Target(bits=BITS), None, Console(quiet=True))
        return means(by_task(self.uses.accuracies({p.stem: p for p in files.values()})))

    def small_folder(self, finished: list[Result]) -> Path:
        """A folder with the first seed's small file of each task, by the task's name."""
        folder = self.workdir / "small"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for result in finished:
            if result.seed == self.config.seeds[0]:
                source = self.workdir / "finished" / "factors" / f"{result.cell}.safetensors"
                shutil.copy(source, folder / f"{result.task}.safetensors")
        return folder

    def measure(self) -> dict[str, Any]:
        """All parts; the JSON of the result."""
        finished = run_sweep(
            config_of(self.args, finish=True), str(self.workdir / "finished"), self.console
        )
        seeds, small, start = self.seeds(), self.small_folder(finished), self.config.seeds[0]
        first = {task: paths[0] for task, paths in seeds.items()}
        columns = {
            "linear": self._trained(self.of(PROBE)),
            "fact_tt": self._trained(self.of(METHOD)),
            "rounded": self.rounded(),
            "finished": self._trained(finished),
            "ensemble": self.uses.accuracies(seeds),
            "averaged": self.uses.averaged(seeds),
            "first_seed": {r.task: r.accuracy for r in self.of(METHOD) if r.seed == start},
            "shared": self.uses.sums(first),
        }
        rows = [
            {"task": task, **{k: v[task] for k, v in columns.items() if task in v}}
            for task in self.tasks
        ]
        return {
            "rows": rows,
            "means": {name: stat(list(v.values())).mean for name, v in columns.items() if v},
            "gain": self._gain(),
            "bytes": self._bytes(small),
            "seconds": sum(r.seconds["cell"] for r in self.results),
            "trainings": len(self.results),
            "mixed_batch": self.uses.mixed_batch(first, self.args.rounds),
            "server": self.uses.serve(small),
            "environment": environment(),
        }

    def _trained(self, results: list[Result]) -> dict[str, float]:
        return means(by_task({result.cell: result.accuracy for result in results}))

    def _gain(self) -> dict[str, float | None]:
        """FacT's points over the probe: mean over tasks for each seed, then over the seeds."""
        gains = []
        for seed in self.config.seeds:
            pair = [[r.accuracy for r in self.of(m) if r.seed == seed] for m in (METHOD, PROBE)]
            gains.append(float(np.mean(pair[0]) - np.mean(pair[1])))
        mean, error, _ = stat(gains)
        return {"mean": mean, "error": error}

    def _bytes(self, small: Path) -> dict[str, int]:
        """Bytes of one file for each task: of factors, of few bits, of heads, of whole networks."""
        first = self.config.seeds[0]
        sizes = {
            method: sum(self.file(r).stat().st_size for r in self.of(method) if r.seed == first)
            for method in (PROBE, METHOD)
        }
        network = sum(4 * leaf.size for leaf in jax.tree.leaves(self.uses.base))
        return {
            **sizes,
            "finished": sum(path.stat().st_size for path in small.glob("*.safetensors")),
            "full": network * len(self.tasks),
            "network": network,
        }


def print_table(record: dict[str, Any], console: Console) -> None:
    table = Table("accuracy on test, mean of the tasks", "%")
    for name, mean in record["means"].items():
        table.add_row(name, f"{mean:.2f}")
    console.print(table)
    console.print({k: v for k, v in record.items() if k not in ("rows", "means", "environment")})


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/hundred_tasks.json"))
    parser.add_argument("--tasks", type=int, default=len(many_tasks.PAIRS))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=0, help="of both sweeps; 0: the config's")
    parser.add_argument("--shots", type=int, default=SHOTS, help="training pictures a class")
    parser.add_argument("--split", default=TEST, help="of the test pictures; val200 to choose by")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workdir", default="runs/hundred_tasks")
    args = parser.parse_args()
    console = Console()
    record = Study(args, console).measure()
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "workdir")}
    record = {"settings": settings, **record}
    print_table(record, console)
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
