"""Copies of a sweep as actors on a Ray cluster.

Ray starts an actor again whose process or node was lost, on any node that has room. A cell that
fails is a result, and its copy goes on.
"""

import contextlib
import logging
import socket
import time
import warnings
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from fact_jax.cli import stopping
from fact_jax.cli.launchers.copies import DELAY, Copy
from fact_jax.cli.live import Bars
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.sweep.runner import POLL
from fact_jax.text import say

OBJECT_STORE = 100 << 20  # bytes, of a cluster that is started here: only names are passed


class Worker:
    """An actor: a process of its own, so that it gives its accelerators back as it ends."""

    def run(self, copy: Copy, device: str) -> None:
        """Runs the copy on 'cpu', 'gpu' or 'tpu'. Ray shows its notes where the command runs."""
        if device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        if jax.default_backend() != device:
            raise UserError(
                f"The task on {socket.gethostname()} has a {device.upper()}, but JAX uses "
                f"{jax.default_backend()}: install jax for it on all nodes (pip install "
                f'"fact-jax[{device}]").'
            )
        copy.run(Console(quiet=True), say)


class OnRay:
    """Copies on the cluster of ``--launch.address``, or on one that is started here."""

    def __init__(self, options: ConfigDict, copy: Copy, bars: Bars):
        self._options, self._copy, self._bars = options, copy, bars
        self._lost: dict[str, None] = {}  # sentences, each once
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        require("--launcher=ray", "ray", "ray")
        import ray

        self._ray: Any = ray
        with self._stack:
            self._connect()
            self._check_resources()
            self._stack = self._stack.pop_all()
        o = self._options
        kind = self._ray.remote(
            num_cpus=o.cpus or 1,
            num_gpus=o.gpus,
            resources={"TPU": o.tpus} if o.tpus else None,
            memory=int(o.memory * 1e9) if o.memory else None,
            max_restarts=o.retries,
            max_task_retries=o.retries,
            scheduling_strategy="SPREAD",
        )(Worker)
        device = "gpu" if o.gpus else "tpu" if o.tpus else "cpu"
        # As many as there are cells: they wait for a place, and autoscalers make room for them.
        self._actors = [kind.remote() for _ in self._copy.cells]
        self._runs = [actor.run.remote(self._copy, device) for actor in self._actors]
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:  # all cells have ended: copies clean up, unless they wait for a place
            for run in self._runs:
                self._ray.cancel(run)
            self._ray.wait(self._runs, num_returns=len(self._runs), timeout=DELAY)
        for actor in self._actors:
            self._ray.kill(actor)
        self._stack.close()

    def running(self) -> bool:
        """Whether copies work. One that ends well has seen the end of all cells."""
        if not self._runs:
            time.sleep(POLL)
        ended, self._runs = self._ray.wait(self._runs, timeout=POLL)
        for run in ended:
            try:
                self._ray.get(run)
                return False
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                self._lost[f"{type(error).__name__}: {str(error).splitlines()[0]}"] = None
        return bool(self._runs)

    def ends(self) -> str:
        return " ".join(self._lost)

    def _connect(self) -> None:
        ray, address = self._ray, self._options.address
        if ray.is_initialized():
            return
        here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            with warnings.catch_warnings():  # what Ray forks becomes another program at once
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                given = {} if address else here
                ray.init(address or "local", logging_level=logging.ERROR, **given)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"No Ray cluster answers at --launch.address={address}: "
                f"{' '.join(str(error).split())}"
            ) from error
        self._stack.callback(ray.shutdown)
        stopping.end_gently()  # Ray has its own idea of SIGTERM

    def _check_resources(self) -> None:
        """Raises UserError if this machine is too small; says what another cluster lacks."""
        o, note = self._options, self._bars.note
        wanted = {"CPU": o.cpus or 1, "GPU": o.gpus, "TPU": o.tpus, "memory": (o.memory or 0) * 1e9}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
            text = ", ".join(f"{k} {v:g}" for k, v in wanted.items() if v)
            if not o.address:
                seen = ", ".join(f"{k} {nodes[0].get(k, 0):g}" for k in wanted)
                raise UserError(
                    f"This machine has less than a task needs ({text}); Ray sees {seen}. "
                    "Lower --launch.cpus, gpus, tpus or memory."
                )
            note(f"No node of the cluster has {text}: waiting for one.")
        for kind in ("GPU", "TPU"):
            number = sum(node.get(kind, 0) for node in nodes)
            if number and not (o.gpus or o.tpus):
                flag = f"--launch.{kind.lower()}s=1"
                note(f"The cluster has {number:g} {kind}s that no task asks for: {flag} gives one.")
