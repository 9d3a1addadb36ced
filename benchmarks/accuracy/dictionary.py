"""Points lost by new tasks that train with a dictionary which never saw them.

    python -m benchmarks.dictionary [--suite offline|pairs] [--seeds 0] [--workdir DIR]
        [--methods fact_tt,fact_tk] [--ranks 16,32] [--ways learnt,post hoc,random]
        [--out FILE.json]

`offline`: the quickstart's three tasks, each with a dictionary of the two others. `pairs`: the
hundred tasks of `configs/many_tasks.py`; every fifth is new, with a dictionary of the 80 others.

A new task trains its cores and its head, with the epochs and the rates that its own FacT-TT has.
`learnt`: the other tasks learn the dictionary together (`fact-jax bank train`). `post hoc`: it is
made of their own FacT-TT without training (`fact-jax bank share`). `random`: orthonormal U and V,
the control; FacT-TK's C is then normal with deviation 1/r.

A row has the mean accuracy of the new tasks on test, the points that they lose against their own
factors, and the bytes of a factor file at 4 bits a factor and 1 of the head. Nothing is chosen
here. Each part is a sweep in a folder of --workdir, which resumes; a run adds its rows to --out.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.pairs import SHOTS, write_pairs
from benchmarks.common import option_parser, write_json
from configs import many_tasks, quickstart
from fact_jax import load_factors
from fact_jax.algebra import Increments, share
from fact_jax.algebra.quantise import Bits
from fact_jax.backbone.config import ViTConfig, get_variant
from fact_jax.cli.local import run_sweep
from fact_jax.data.tasks import TEST
from fact_jax.files.dictionary import SUFFIX, Dictionary
from fact_jax.files.factors import to_bytes
from fact_jax.report.averages import stat
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment
from fact_jax.tuning import METHODS
from fact_jax.tuning.method import SharingMethod

SMALL = Bits(4, 1)
NEW = 5  # every fifth of the pairs is new


class Fold(NamedTuple):
    """New tasks, and the tasks that their dictionary comes from."""

    name: str
    new: list[str]
    others: list[str]


def _without(task: str, tasks: list[str]) -> Fold:
    others = [other for other in tasks if other != task]
    return Fold("-".join(others), [task], others)


class Study:
    """Dictionaries of some tasks, and other tasks that are trained with them."""

    def __init__(self, args: argparse.Namespace, console: Console):
        self.args, self.console = args, console
        self.workdir = Path(args.workdir or f"runs/dictionary-{args.suite}")
        self.tasks: list[str] = self._config().tasks.split(",")
        if args.suite == "pairs":
            write_pairs(self.workdir / "pictures", self.tasks, SHOTS, TEST)
            new = self.tasks[::NEW]
            self.folds = [Fold("most", new, [task for task in self.tasks if task not in new])]
        else:
            self.folds = [_without(task, self.tasks) for task in self.tasks]
        self.new = [task for fold in self.folds for task in fold.new]
        self.vit: ViTConfig = get_variant(self._config().variant)
        self.own = run_sweep(self._config(), str(self.workdir / "own"), console)

    def _config(self, method: str = "", tasks: list[str] | None = None) -> ConfigDict:
        """The suite's config, shortened as the options say, with these methods and tasks."""
        args = self.args
        config = many_tasks.get_config() if args.suite == "pairs" else quickstart.get_config()
        config.seeds = tuple(map(int, args.seeds.split(",")))
        if args.suite == "pairs":
            config.data_dir = str(self.workdir / "pictures")
            config.fact_tk.rank, config.fact_tk.per_task = 4, config.fact_tt.per_task
        if args.tasks:
            config.tasks = args.tasks
        if args.epochs:
            config.epochs = args.epochs
        if method:
            config.methods = method
        if tasks is not None:
            config.tasks = ",".join(tasks)
        return config

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all ways, methods and ranks; the tasks' own factors come first."""
        config, rows = self._config(), []
        for name in config.methods.split(","):
            of_method = [r for r in self.own if r.method == name and r.task in self.new]
            rows.append(self._row("own", name, config[name].get("rank"), of_method))
        for name in self.args.methods.split(","):
            for rank in map(int, self.args.ranks.split(",")):
                for way in self.args.ways.split(","):
                    rows.append(self._row(way, name, rank, self._trained(way, name, rank)))
                    self.console.print(table([rows[-1]]))
        return rows

    def _trained(self, way: str, name: str, rank: int) -> list[Result]:
        """The new tasks, each trained with the dictionary of its fold."""
        config = self._config(name, self.new)
        config[name].rank = rank
        per_task = config[name].per_task.to_dict()
        for fold in self.folds:
            path = str(self._dictionary(way, name, rank, fold))
            for task in fold.new:
                per_task[task] = {**per_task.get(task, {}), "shared": path}
        config[name].per_task = ConfigDict(per_task)
        return run_sweep(config, str(self._folder(way, name, rank)), self.console)

    def _folder(self, way: str, name: str, rank: int | None) -> Path:
        return self.workdir / ("own" if way == "own" else f"{way}-{name}-{rank}")

    def _dictionary(self, way: str, name: str, rank: int, fold: Fold) -> Path:
        """The file of a dictionary of a fold."""
        folder = self.workdir / "dictionaries" / f"{way}-{name}-{rank}-{fold.name}"
        if way == "learnt":
            config = self._config(name, fold.others)
            config[name].rank, config.shared, config.seeds = rank, "learn", config.seeds[:1]
            run_sweep(config, str(folder), self.console)
            (path,) = (folder / "factors").glob(f"*{SUFFIX}")
            return path
        method = METHODS[name](rank=rank, scale=1.0)
        assert isinstance(method, SharingMethod)
        metadata = {"variant": self._config().variant}
        if way == "post hoc":
            factors = share([self._increments(task) for task in fold.others], method, self.vit)[
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

    def _row(self, way: str, name: str, rank: int | None, results: list[Result]) -> dict[str, Any]:
        folder = self._folder(way, name, rank) / "factors"
        lost = {}
        for own in dict.fromkeys(r.method for r in self.own if r.num_factors):
            lost[own] = stat([self._accuracy(own, r) - r.accuracy for r in results])
        return {
            "way": way,
            "method": name,
            "rank": rank,
            "numbers": results[0].num_factors,
            "small_bytes": round(float(np.mean([self._small(folder, r) for r in results]))),
            "accuracies": {t: [r.accuracy for r in results if r.task == t] for t in self.new},
            "accuracy": stat([r.accuracy for r in results]).mean,
            "lost": {own: {"mean": s.mean, "error": s.error} for own, s in lost.items()},
        }

    def _accuracy(self, method: str, like: Result) -> float:
        (result,) = (
            r for r in self.own if (r.method, r.task, r.seed) == (method, like.task, like.seed)
        )
        return result.accuracy

    def _small(self, folder: Path, result: Result) -> int:
        """Bytes of a factor file at few bits, with the metadata of a sweep."""
        task = load_factors(folder / f"{result.cell}.safetensors")
        trainable = {"factors": task.factors, "head": task.head}
        names = ("task", "class_names", "variant", "weights_sha256", "image_size", "normalisation")
        metadata = {name: task.metadata[name] for name in names}
        return len(to_bytes(task.method, trainable, self.vit, metadata, SMALL, task.dictionary))


def random_factors(method: Any, vit: Any) -> dict[str, np.ndarray]:
    """A dictionary of orthonormal U and V, and of a random C for FacT-TK."""
    rng, r = np.random.default_rng(0), method.rank
    u, v = (np.linalg.qr(rng.standard_normal((vit.width, r)))[0] for _ in range(2))
    return {"U": u, "V": v.T, "C": rng.standard_normal((r, r, r)) / r}


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as people read them."""
    shown = Table("dictionary", "method", title="New tasks, top-1 on test", title_justify="left")
    for name in ("rank", "numbers", "bytes at 4/1", "accuracy", "lost to own factors"):
        shown.add_column(name, justify="right")
    for row in rows:
        lost = [f"{own} {x['mean']:.1f}" for own, x in row["lost"].items()]
        size = [str(row["rank"] or "-"), f"{row['numbers']:,}", f"{row['small_bytes']:,}"]
        shown.add_row(row["way"], row["method"], *size, f"{row['accuracy']:.1f}", ", ".join(lost))
    return shown


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/dictionary.json"))
    parser.add_argument("--suite", choices=["offline", "pairs"], default="offline")
    parser.add_argument("--workdir", default="", help="by default runs/dictionary-SUITE")
    parser.add_argument("--methods", default="fact_tt,fact_tk")
    parser.add_argument("--ranks", default="16,32")
    parser.add_argument("--ways", default="learnt,post hoc,random")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tasks", default="", help="of the suite, with commas; empty: all")
    parser.add_argument("--epochs", type=int, default=0, help="0: the suite's")
    args = parser.parse_args()
    console = Console()
    study = Study(args, console)
    rows = study.rows()
    console.print(table(rows))
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    before = [r for r in record.get(args.suite, {}).get("rows", []) if r["way"] != "own"]
    done = {(r["way"], r["method"], r["rank"]) for r in rows}
    rows += [r for r in before if (r["way"], r["method"], r["rank"]) not in done]
    record[args.suite] = {
        "seeds": args.seeds,
        "tasks": len(study.tasks),
        "rows": rows,
        "environment": environment(),
    }
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
