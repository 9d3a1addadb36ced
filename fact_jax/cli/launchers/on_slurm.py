"""Copies of a sweep as jobs under Slurm, through submitit.

A job that is preempted, or reaches its time limit, ends after its epoch and is queued again. Other
jobs take over what a lost job worked on.
"""

import ast
import dataclasses
import functools
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from fact_jax.cli import stopping
from fact_jax.cli.launchers.copies import Copy
from fact_jax.cli.live import Bars
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.sweep.runner import POLL
from fact_jax.text import say

LOOK = 30.0  # seconds between questions to Slurm's controller
SUBMITTED = "_submitted.pkl"  # ends the name of the file that submitit writes for a job


@dataclasses.dataclass(frozen=True)
class Job:
    """A copy as a job. submitit pickles it and, to queue it again, calls `checkpoint`."""

    copy: Copy
    grace: int  # seconds in which an epoch may end

    def __call__(self) -> str:
        """Runs the copy. Returns the reason if it could not run, else ''."""
        from submitit import JobEnvironment

        number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        queue_again = signal.getsignal(number)
        assert callable(queue_again)
        last = functools.partial(queue_again, number, None)
        stopping.end_gently(number, self.grace, last)
        try:
            self.copy.run(Console(width=120))
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
    """Submits the jobs that are missing beside those of an earlier command."""

    def __init__(self, options: ConfigDict, copy: Copy, bars: Bars):
        self._options, self._copy, self._note = options, copy, bars.note
        scheme, _, bucket = copy.workdir.rpartition("://")  # a bucket holds no logs
        self._folder = Path("slurm", bucket).absolute() if scheme else Path(bucket, "slurm")
        self._looked = time.monotonic()

    def __enter__(self) -> Self:
        require("--launcher=slurm", "slurm", "submitit")
        import submitit

        o, more = self._options, parameters(self._options.parameters)
        kind = submitit.LocalJob if o.cluster == "local" else submitit.SlurmJob
        names = [path.name.removesuffix(SUBMITTED) for path in self._folder.glob(f"*{SUBMITTED}")]
        delay = int(more.get("signal_delay_s", 90))  # submitit's
        job = Job(self._copy, max(int(stopping.GRACE), delay - 15))
        try:
            executor = submitit.AutoExecutor(
                self._folder, cluster=o.cluster, **{f"{o.cluster}_max_num_timeout": o.retries}
            )
            executor.update_parameters(
                name="fact_jax",
                timeout_min=minutes(o.time),
                cpus_per_task=o.cpus,
                gpus_per_node=o.gpus or None,
                mem_gb=o.memory,
                slurm_partition=o.partition,
                slurm_account=o.account,
                **{f"slurm_{name}": value for name, value in more.items()},
            )
            self._jobs = self._alive([kind(self._folder, name) for name in sorted(names)])
            missing = min(o.jobs, len(self._copy.cells)) - len(self._jobs)
            self._jobs += executor.submit_array([job] * missing) if missing > 0 else []
        except UserError:
            raise
        except (RuntimeError, ValueError, NameError, AssertionError, OSError) as error:
            raise UserError(f"No job could be submitted: {error}") from error
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refuses: {' '.join(str(error).split())}") from error
        text = f"Jobs {self._names()}, logs in {self._folder}."
        if not o.wait:
            text += (
                " The same command with --dry_run shows what is done, without "
                "--launch.wait=False it follows them."
            )
        self._note(text)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._note(f"The jobs go on. To end them: scancel {self._names()}")

    def running(self) -> bool:
        time.sleep(POLL)
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            return bool(self._alive(self._jobs))
        return any(not job.paths.result_pickle.exists() for job in self._jobs)

    def ends(self) -> str:
        ends = dict.fromkeys(_end(job) for job in self._jobs)
        return f"{' '.join(ends)} Logs are in {self._folder}."

    def _names(self) -> str:
        return " ".join(job.job_id for job in self._jobs)

    def _alive(self, jobs: list[Any]) -> list[Any]:
        """The jobs that wait or run. submitit asks sacct, which is not on all clusters."""
        jobs = [job for job in jobs if not job.paths.result_pickle.exists()]
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
    """Minutes of a time as sbatch writes it: minutes, [H:]MM:SS, or D-HH[:MM[:SS]]."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time_limit):
        raise UserError(f"--launch.time is {time_limit!r}; expected 240, 4:00:00 or 1-12:00:00.")
    days, dash, clock = time_limit.rpartition("-")
    parts = clock.split(":")
    if not dash and len(parts) < 3:  # no hours
        parts = ["0", *parts]
    hours, whole, seconds = map(int, [*parts, "0", "0"][:3])
    return max(1, 60 * (24 * int(days or 0) + hours) + whole - (-seconds // 60))


def parameters(text: str) -> dict[str, Any]:
    """Values of "qos=low constraint=a100 nice=100"; numbers and True are read as Python's."""
    values: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(
                f"--launch.parameters: {word!r}; expected NAME=VALUE with spaces between, such as "
                "'qos=low constraint=a100'."
            )
        try:
            values[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            values[name] = value
    return values
