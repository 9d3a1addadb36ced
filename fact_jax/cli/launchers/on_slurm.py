"""Jobs under Slurm, through submitit, that share a sweep.

Every job runs the whole sweep beside the others: cells are claimed in the work directory, so that
none waits while there is work, however long cells take, and what a lost job worked on is taken over
by another. A job that is preempted, or reaches its time limit, ends after its epoch and is queued
again.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

from ml_collections import ConfigDict

from fact_jax.cli import process, stopping
from fact_jax.cli.launchers.watch import Watch
from fact_jax.cli.live import Bars
from fact_jax.cli.sweep import rerun_command, run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.files.schema import check_type
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.record import stored_result
from fact_jax.sweep.runner import POLL, Outcome
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import Store
from fact_jax.text import say


class _Jobs(TypedDict):
    """DIR/slurm/jobs.json."""

    jobs: list[str]


LOOK = 30.0  # seconds between questions to Slurm's controller


class Job:
    """The sweep as a job runs it; submitit pickles it, and to queue it again calls `checkpoint`."""

    def __init__(self, config: ConfigDict, workdir: str, only: list[str], command: str, grace: int):
        self.config, self.workdir, self.only, self.command = config, workdir, only, command
        self.grace = grace  # seconds in which an epoch may end

    def __call__(self) -> str:
        """What kept it from running, '' if nothing did."""
        from submitit import JobEnvironment

        number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        queue_again = signal.getsignal(number)
        process.prepare_process()
        assert callable(queue_again)
        last = functools.partial(queue_again, number, None)
        stopping.end_gently(number, self.grace, last)
        try:
            failures: list[Failure] = []
            run_sweep(
                self.config, self.workdir, Console(width=120), failures, self.only,
                rerun=lambda cell: self.command + cell,
            )  # fmt: skip
        except UserError as error:
            say(f"error: {error}")
            return str(error)
        except stopping.Terminated:
            stopping.STOPPING.over()
            try:
                last()
            except SystemExit as ended:  # queued again
                stopping.end_process(stopping.exit_status(ended))
        return ""

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class OnSlurm:
    """Submits jobs and follows them; ``--launch.wait=False`` leaves them alone."""

    def __init__(
        self, options: ConfigDict, config: ConfigDict, store: Store, bars: Bars, only: list[str]
    ):
        self._options, self._config, self._store, self._bars = options, config, store, bars
        self._only, self._minutes = only, minutes(options.time)
        self._more = parameters(options.parameters)
        here = "://" in str(store.workdir)  # a bucket holds no logs
        self._folder = Path.cwd() / "slurm" if here else Path(str(store.workdir)) / "slurm"

    def __enter__(self) -> OnSlurm:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                '--launcher=slurm needs submitit: pip install "fact-jax[slurm]".'
            ) from error
        self._submitit = submitit
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The stored result. Whether the weights are the same, the jobs know."""
        old = self._store.read_record(cell.name) or {}
        weights = old.get("settings", {}).get("weights_sha256")
        return stored_result(self._store, cell, {**cell.as_stored, "weights_sha256": weights})

    def check_data(self, cells: list[Cell], results: dict[str, dict[str, Any]]) -> None:
        """The jobs do, where the data are."""

    def describe(self, console: Console, cells: list[Cell]) -> None:
        """The jobs do, in their logs."""

    def run(
        self, cells: list[Cell], results: dict[str, dict[str, Any]], only: list[str]
    ) -> Iterator[Outcome]:
        """What comes of the cells without a result, as soon as it is in the work directory."""
        todo = [c for c in cells if c.name not in results and (not only or c.name in only)]
        if not todo:
            return
        watch = Watch(self._store, self._bars, todo)
        jobs = self._jobs(min(self._options.jobs, len(todo)))
        names = " ".join(job.job_id for job in jobs)
        where = f"Jobs {names}, logs in {self._folder}."
        if not self._options.wait:
            self._bars.note(
                f"{where} The same command with --dry_run shows what is done, without "
                "--launch.wait=False it follows them."
            )
            return
        self._bars.note(where)
        try:
            looked = time.monotonic()
            while watch.left and any(not job.paths.result_pickle.exists() for job in jobs):
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    if not self._alive(jobs):
                        break
                yield from watch.look()
                stopping.check_signals()
                time.sleep(POLL)
        except (KeyboardInterrupt, stopping.Terminated):
            self._bars.note(f"The jobs go on. To end them: scancel {names}")
            raise
        yield from watch.last_looks()
        if watch.left:
            raise UserError(
                f"{len(watch.left)} cells are not finished, and no job works on them any more. "
                + " ".join(dict.fromkeys(_end(job) for job in jobs))
                + f" Logs are in {self._folder}. The same command goes on."
            )

    def _jobs(self, number: int) -> list[Any]:
        """So many jobs: those that an earlier command submitted and that have not ended, and new
        ones."""
        o, s = self._options, self._submitit
        path = self._store.workdir / "slurm" / "jobs.json"
        try:
            executor = s.AutoExecutor(
                self._folder, cluster=o.cluster, **{f"{o.cluster}_max_num_timeout": o.retries}
            )
            executor.update_parameters(
                name="fact_jax",
                timeout_min=self._minutes,
                cpus_per_task=o.cpus,
                gpus_per_node=o.gpus or None,
                mem_gb=o.memory,
                slurm_partition=o.partition,
                slurm_account=o.account,
                **{f"slurm_{name}": value for name, value in self._more.items()},
            )
            kind = s.LocalJob if o.cluster == "local" else s.SlurmJob
            stored = self._store.read_json(path, lambda content: check_type(content, _Jobs))
            known = (stored or {}).get("jobs", [])
            before = [kind(self._folder, i) for i in known]
            jobs = self._alive(before)
            delay = int(self._more.get("signal_delay_s", 90))  # submitit's
            job = Job(
                self._config, str(self._store.workdir), self._only,
                rerun_command("CELL").removesuffix("CELL"), max(int(stopping.GRACE), delay - 15),
            )  # fmt: skip
            missing = [job] * (number - len(jobs))
            new = executor.submit_array(missing) if missing else []
        except (RuntimeError, ValueError, NameError, AssertionError, OSError) as error:
            raise UserError(f"No job could be submitted: {error}") from error
        except s.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refuses: {' '.join(str(error).split())}") from error
        self._store.write_json(path, {"jobs": [job.job_id for job in (*jobs, *new)]})
        return [*jobs, *new]

    def _alive(self, jobs: list[Any]) -> list[Any]:
        """Those that wait or run. submitit asks sacct, which is not on all clusters."""
        if self._options.cluster != "slurm" or not jobs:
            return [job for job in jobs if not job.done()]
        ids = ",".join(job.job_id for job in jobs)
        asked = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={ids}"]
        out = subprocess.run(asked, capture_output=True, text=True)
        if out.returncode and "Invalid job id" not in out.stderr:
            return jobs  # the controller may answer later
        return [job for job in jobs if job.job_id in out.stdout.split()]


def _end(job: Any) -> str:
    """How a job ended, in a sentence."""
    if not job.paths.result_pickle.exists():
        return f"Job {job.job_id} was cancelled or killed."
    try:
        return job.result() or f"Job {job.job_id} ended well."
    except Exception as error:
        return f"Job {job.job_id}: {str(error).strip().splitlines()[-1]}."


def minutes(time_limit: str) -> int:
    """Of a time as sbatch writes it: minutes, [H:]MM:SS, or D-HH[:MM[:SS]]."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time_limit)
    if not match:
        raise UserError(f"--launch.time is {time_limit!r}; expected 240, 4:00:00 or 1-12:00:00.")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if "-" in time_limit:
        limit = timedelta(days=days, hours=first, minutes=second, seconds=third)
    elif time_limit.count(":") == 2:
        limit = timedelta(hours=first, minutes=second, seconds=third)
    else:
        limit = timedelta(minutes=first, seconds=second)
    return max(1, math.ceil(limit / timedelta(minutes=1)))


def parameters(text: str) -> dict[str, Any]:
    """Of "qos=low constraint=a100 nice=100"; numbers and True are what they look like."""
    found: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(
                f"--launch.parameters: {word!r}; expected NAME=VALUE with spaces between, such as "
                "'qos=low constraint=a100'."
            )
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found
