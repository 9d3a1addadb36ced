"""Mutated files against our readers: each ends in a UserError or a sound result, in bounds.

    python -m benchmarks.fuzz --out benchmarks/results/fuzz.json
    python -m benchmarks.fuzz --only npz,torch --cases 500 --seed 1
    python -m benchmarks.fuzz --only npz --case 123        # one case again, its file kept

A violation is any other exception, a case of over 2 s of processor time or 500 MB, or a process
that dies. Each target runs in a process of its own with a limit on its memory and a watchdog.
Exits with 1 if there was a violation.
"""

import argparse
import faulthandler
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from benchmarks.common import option_parser, write_json
from benchmarks.robustness import fuzz_data, fuzz_files, fuzz_results
from benchmarks.robustness.fuzz_target import Target
from fact_jax import UserError
from fact_jax.sweep.versions import environment

TARGETS: dict[str, Target] = {**fuzz_files.TARGETS, **fuzz_results.TARGETS, **fuzz_data.TARGETS}

_SECONDS, _BYTES = 2.0, 500 << 20
_HANGS = 300  # seconds after which the watchdog ends the process; the machine may be busy
_ADDRESS_SPACE = 4 << 30  # beyond what the process has before the first case


def make(target: Target, seeds: list[bytes], name: str, seed: int, case: int) -> bytes:
    """The file of a case."""
    rng = random.Random(f"{seed}/{name}/{case}")
    return target.mutate(rng, rng.choice(seeds))


def attempt(target: Target, path: Path) -> dict:
    """Loads a file: outcome, processor seconds and peak memory above the present."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = _memory("VmRSS"), time.process_time()
    outcome = "accepted"
    try:
        target.load(path)
    except UserError as error:
        outcome = "refused"
        str(error).encode("utf-8", "backslashreplace")
    except Exception:  # the fuzzer looks for these
        outcome = traceback.format_exc(limit=-4)
    return {
        "outcome": outcome,
        "seconds": time.process_time() - started,
        "bytes": _memory("VmHWM") - before,
    }


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10


def work(name: str, seed: int, start: int, stop: int) -> None:
    """Runs the cases of one target in this process; prints one line of JSON before and after."""
    target = TARGETS[name]
    seeds = target.seeds()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{target.suffix}"
        for data in seeds:  # also warms up what is imported late
            path.write_bytes(data)
            target.load(path)
        size = _memory("VmSize") + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        for case in range(start, stop):
            print(json.dumps({"case": case}), flush=True)
            faulthandler.dump_traceback_later(_HANGS, exit=True)
            path.write_bytes(make(target, seeds, name, seed, case))
            print(json.dumps({"case": case, **attempt(target, path)}), flush=True)
            faulthandler.cancel_dump_traceback_later()


def run(name: str, seed: int, cases: int) -> dict:
    """All cases of a target, in processes that begin anew after one that dies."""
    results: list[dict] = []
    violations: list[dict] = []
    started, case = time.time(), 0
    while case < cases:
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzz",
            "--worker",
            f"{name},{seed},{case},{cases}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise SystemExit(f"{name} does not start:\n{done.stderr}")
        results += [line for line in lines if "outcome" in line]
        case = lines[-1]["case"] + 1
        if "outcome" not in lines[-1]:
            outcome = f"the process ended with {done.returncode}\n{done.stderr[-2000:]}"
            violations.append({"case": case - 1, "outcome": outcome})
    violations += [r for r in results if is_violation(r)]
    return {
        "cases": cases,
        "refused": sum(r["outcome"] == "refused" for r in results),
        "accepted": sum(r["outcome"] == "accepted" for r in results),
        "violations": len(violations),
        "longest_seconds": round(max(r["seconds"] for r in results), 3),
        "most_megabytes": round(max(r["bytes"] for r in results) / 2**20, 1),
        "wall_seconds": round(time.time() - started, 1),
        "found": violations[:20],
    }


def is_violation(result: dict) -> bool:
    """Whether a case took too much or ended in another way than a reader should."""
    in_bounds = result["seconds"] <= _SECONDS and result["bytes"] <= _BYTES
    return result["outcome"] not in ("accepted", "refused") or not in_bounds


def again(name: str, seed: int, case: int) -> None:
    """Writes the file of one case beside the user and loads it."""
    target = TARGETS[name]
    path = Path(f"fuzz-{name}-{seed}-{case}{target.suffix}")
    path.write_bytes(make(target, target.seeds(), name, seed, case))
    print(f"Wrote {path}.")
    target.load(path)
    print("Accepted.")


def print_table(results: dict[str, dict]) -> None:
    """The numbers of each target, and each violation."""
    columns = ["cases", "refused", "accepted", "violations", "longest_seconds", "most_megabytes"]
    print("target".ljust(16) + "".join(column.rjust(17) for column in columns))
    for name, result in results.items():
        print(name.ljust(16) + "".join(str(result[column]).rjust(17) for column in columns))
    for name, result in results.items():
        for violation in result["found"]:
            print(f"\n{name} case {violation['case']}: {violation}")


def _others(path: Path) -> dict[str, dict]:
    """Results of an earlier run, of targets that are still there."""
    old = json.loads(path.read_text())["targets"] if path.exists() else {}
    return {name: old[name] for name in TARGETS if name in old}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--only", default=",".join(TARGETS), help="targets, with commas")
    parser.add_argument("--cases", type=int, default=3000, help="number of cases of a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this case, its file kept")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        name, *numbers = a.worker.split(",")
        return work(name, *map(int, numbers))
    if a.case is not None:
        return again(a.only, a.seed, a.case)
    results = {}
    for name in a.only.split(","):
        results[name] = run(name, a.seed, max(1, round(a.cases * TARGETS[name].share)))
        print_table({name: results[name]})
    if a.out:
        record = {
            "seed": a.seed,
            "limits": {"seconds": _SECONDS, "megabytes": _BYTES >> 20},
            "environment": environment(),
            "targets": {**_others(a.out), **results},
        }
        write_json(a.out, record)
    if any(result["violations"] for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
