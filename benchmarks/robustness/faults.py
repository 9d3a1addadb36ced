"""Losses of sweeps by faults: kills, full or read-only disks, corrupt files, failing cells, clocks.

    python -m benchmarks.faults [--only kill,full] [--kills 20] [--seed 0] [--out FILE.json]

With --only, the results of other faults in FILE.json stay.

The command of a user (`python -m experiments.vtab`) runs in subprocesses on the sweep of
faults_bench.py. After each fault the same command runs again, until it is done. The
results are then compared with those of an undisturbed sweep: all numbers except times, the factors
and the pictures must be equal, and no finished result may have been written again.
"full" and "readonly" need root (mount, chattr) and are left out, by name, without.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from benchmarks.robustness.faults_bench import Bench
from benchmarks.robustness.faults_cells import clock, failing, together
from benchmarks.robustness.faults_disks import corrupt, full, readonly
from benchmarks.robustness.faults_signals import interrupt, kill, stop, term
from fact_jax.sweep.versions import environment


def lacking(name: str) -> str:
    """A sentence on what this trial needs and the machine lacks."""
    tool = {"full": "mount", "readonly": "chattr"}.get(name)
    if tool and (shutil.which(tool) is None or os.geteuid() != 0):
        return f"{tool}, as root"
    return ""


ALL = (kill, stop, term, interrupt, full, readonly, corrupt, failing, together, clock)
TRIALS = {trial.__name__: trial for trial in ALL}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--only", default="", help=f"of {', '.join(TRIALS)}, commas between")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it works, kept; by default temporary")
    a = parser.parse_args()
    names = a.only.split(",") if a.only else list(TRIALS)
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(TRIALS)}")
    folder = a.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench, tried = Bench(folder.resolve(), a.seed, a.kills), {}
    for name in names:
        since, before = time.monotonic(), len(bench.rows)
        if missing := lacking(name):
            print(f"left out: {name}, which needs {missing}")
            continue
        TRIALS[name](bench)
        tried[name] = {
            "command": f"python -m benchmarks.faults --only {name} --kills {a.kills} "
            f"--seed {a.seed}",
            "rows": bench.rows[before:],
            "seconds": time.monotonic() - since,
            "environment": environment(),
        }
    table = Table("tried", "times", "lost", "and then", title="Faults")
    for row in bench.rows:
        table.add_row(
            row["what"], str(row["times"]), "; ".join(row["lost"]) or "nothing", row["then"]
        )
    Console().print(table)
    if a.out:  # trials of an earlier command stay
        stored = json.loads(a.out.read_text()) if a.out.exists() else {}
        content = {name: {**stored, **tried}.get(name, "left out") for name in TRIALS}
        write_json(a.out, content)
    if not a.folder:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(any(row["lost"] for row in bench.rows))


if __name__ == "__main__":
    main()
