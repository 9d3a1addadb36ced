"""Points lost by tasks that share a dictionary, which never saw them.

    python -m benchmarks.dictionary [--seeds 0] [--methods fact_tt,fact_tk] [--ranks 16,32]
        [--ways learnt,post hoc,random] [--workdir DIR] [--out FILE.json]

Leave-one-task-out on the quickstart's three tasks: a dictionary comes from two of them, and the
third trains its cores and its head with it. `learnt`: the two tasks learn it together
(`fact-jax bank train`). `post hoc`: it is made of the two tasks' own FacT-TT of rank 16 without
training (`fact-jax bank share`). `random`: orthonormal directions, the control; FacT-TK's C is then
standard normal over r. The third task has 20 epochs and the quickstart's rates in all of them.

A row has the accuracy on test of each left-out task, the points that it loses against its own
FacT-TT and FacT-TK of rank 16, and the bytes of its factor file at 4 bits a factor and 1 of the
head. Nothing is chosen here. Each part is a sweep in a folder of --workdir, which resumes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import cells
from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax import load_factors
from fact_jax.algebra import Increments, share
from fact_jax.algebra.quantise import Bits
from fact_jax.backbone.config import get_variant
from fact_jax.cli.local import run_sweep
from fact_jax.files.dictionary import SUFFIX, Dictionary
from fact_jax.files.factors import to_bytes
from fact_jax.report.averages import stat
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment
from fact_jax.tuning import METHODS

OWN = ("linear", "fact_tt", "fact_tk")
SMALL = Bits(4, 1)


def config_of(args: argparse.Namespace, methods: str, tasks: list[str]) -> ConfigDict:
    """The quickstart's config with these methods and tasks, changed as the options say."""
    config = quickstart.get_config()
    cells.change(config, args, "seeds", "epochs")
    config.methods, config.tasks = methods, ",".join(tasks)
    return config


class Study:
    """Dictionaries of the other tasks, and the tasks that are trained with them."""

    def __init__(self, args: argparse.Namespace, console: Console):
        self.args, self.console, self.workdir = args, console, Path(args.workdir)
        config = quickstart.get_config()
        cells.change(config, args, "tasks")
        self.tasks, self.vit = config.tasks.split(","), get_variant(config.variant)
        own = config_of(args, ",".join(OWN), self.tasks)
        self.own = run_sweep(own, str(self.workdir / "own"), console)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all ways, methods and ranks; the tasks' own factors come first."""
        rows = [
            self._row("own", name, 16, [r for r in self.own if r.method == name]) for name in OWN
        ]
        for name in self.args.methods.split(","):
            for rank in map(int, self.args.ranks.split(",")):
                for way in self.args.ways.split(","):
                    rows.append(self._row(way, name, rank, self._trained(way, name, rank)))
        return rows

    def _trained(self, way: str, name: str, rank: int) -> list[Result]:
        """The left-out tasks, each trained with the dictionary of the others."""
        config = config_of(self.args, name, self.tasks)
        config[name].rank = rank
        for task in self.tasks:
            others = [other for other in self.tasks if other != task]
            settings = config[name].per_task.get(task, ConfigDict())
            settings.shared = str(self._dictionary(way, name, rank, others))
            config[name].per_task[task] = settings
        return run_sweep(config, str(self.workdir / f"{way}-{name}-{rank}"), self.console)

    def _dictionary(self, way: str, name: str, rank: int, others: list[str]) -> Path:
        """The file of a dictionary that these tasks make."""
        folder = self.workdir / "dictionaries" / f"{way}-{name}-{rank}-{'-'.join(others)}"
        if way == "learnt":
            config = config_of(self.args, name, others)
            config[name].rank, config.shared, config.seeds = rank, "learn", config.seeds[:1]
            run_sweep(config, str(folder), self.console)
            (path,) = (folder / "factors").glob(f"*{SUFFIX}")
            return path
        method = METHODS[name](rank=rank, scale=1.0)
        metadata = {"variant": "vit_mini"}
        if way == "post hoc":
            factors = share([self._increments(task) for task in others], method, self.vit)[
                0
            ].factors
        else:
            factors = random_factors(method, self.vit)
        dictionary = Dictionary.of(method, factors, self.vit, metadata)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / dictionary.file_name
        path.write_bytes(dictionary.content)
        return path

    def _increments(self, task: str) -> Increments:
        seed = self.own[0].seed
        path = self.workdir / "own" / "factors" / f"{task}-fact_tt-seed{seed}.safetensors"
        trained = load_factors(path)
        return Increments.of(trained.method, trained.factors, self.vit)

    def _row(self, way: str, name: str, rank: int, results: list[Result]) -> dict[str, Any]:
        folder = "own" if way == "own" else f"{way}-{name}-{rank}"
        lost = {own: [self._accuracy(own, r) - r.accuracy for r in results] for own in OWN[1:]}
        means = {own: stat(values) for own, values in lost.items()}
        return {
            "way": way,
            "method": name,
            "rank": rank,
            "numbers": results[0].num_factors,
            "bytes": round(float(np.mean([r.factor_file_bytes for r in results]))),
            "small_bytes": round(float(np.mean([self._small(folder, r) for r in results]))),
            "accuracies": {t: [r.accuracy for r in results if r.task == t] for t in self.tasks},
            "lost": {own: mean.mean for own, mean in means.items()},
            "error": {own: mean.error for own, mean in means.items()},
        }

    def _accuracy(self, method: str, like: Result) -> float:
        (result,) = (
            r for r in self.own if (r.method, r.task, r.seed) == (method, like.task, like.seed)
        )
        return result.accuracy

    def _small(self, folder: str, result: Result) -> int:
        """Bytes of a factor file at few bits, with the metadata of a sweep."""
        path = self.workdir / folder / "factors" / f"{result.cell}.safetensors"
        task = load_factors(path)
        trainable = {"factors": task.factors, "head": task.head}
        names = ("task", "class_names", "variant", "weights_sha256", "image_size", "normalisation")
        metadata = {name: task.metadata[name] for name in names}
        return len(to_bytes(task.method, trainable, self.vit, metadata, SMALL, task.dictionary))


def random_factors(method: Any, vit: Any) -> dict[str, np.ndarray]:
    """A dictionary of orthonormal U and V, and of a random C for FacT-TK."""
    rng, r = np.random.default_rng(0), method.rank
    u, v = (np.linalg.qr(rng.standard_normal((vit.width, r)))[0] for _ in range(2))
    return {"U": u, "V": v.T, "C": rng.standard_normal((r, r, r)) / r}


def table(record: dict[str, Any]) -> Table:
    """The rows as people read them."""
    shown = Table("dictionary", "method", title="Leave-one-task-out, top-1 on test")
    for name in (
        "rank",
        "numbers",
        "bytes at 4/1",
        *record["tasks"],
        "lost to own TT",
        "to own TK",
    ):
        shown.add_column(name, justify="right")
    for row in record["rows"]:
        means = [f"{np.mean(values):.1f}" for values in row["accuracies"].values()]
        lost = [f"{row['lost'][own]:.1f}" for own in OWN[1:]]
        size = [str(row["rank"]), f"{row['numbers']:,}", f"{row['small_bytes']:,}"]
        shown.add_row(row["way"], row["method"], *size, *means, *lost)
    return shown


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/dictionary.json"))
    parser.add_argument("--workdir", default="runs/dictionary")
    parser.add_argument("--methods", default="fact_tt,fact_tk")
    parser.add_argument("--ranks", default="16,32")
    parser.add_argument("--ways", default="learnt,post hoc,random")
    cells.add_changes(parser, "seeds", "tasks", "epochs")
    args = parser.parse_args()
    console = Console()
    study = Study(args, console)
    record = {
        "ways": args.ways,
        "seeds": [r.seed for r in study.own if (r.method, r.task) == (OWN[0], study.tasks[0])],
        "tasks": study.tasks,
        "rows": study.rows(),
        "environment": environment(),
    }
    console.print(table(record))
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
