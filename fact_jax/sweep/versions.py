"""The environment of a result: packages, devices, commit."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("fact-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"),
    *("numpy", "pillow"),
)


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, devices and the git commit (with '+changes' if the tree is not clean).

    Results of benchmarks may differ: a benchmark writes its own while it runs.
    Where git knows none, as in a copy without .git, it is the environment's FACT_JAX_COMMIT.
    """
    import jax

    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processor": _processor(),
        "commit": _commit(),
    }


def _processor() -> str:
    """Linux's own words, such as "AMD EPYC, family 25, model 17": clouds shorten the names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {k.strip(): v.strip() for k, v in (x.split(":", 1) for x in lines if ":" in x)}
    family, model = fields.get("cpu family"), fields.get("model")
    numbers = f", family {family}, model {model}" if family and model else ""
    return fields.get("model name", platform.machine()) + numbers


def _commit() -> str | None:
    here = Path(__file__).parent
    status = ["status", "--porcelain", "-uno", "--", ":(top)", ":(top,exclude)benchmarks/results"]
    try:
        commit, changes = (
            subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
            for args in (["rev-parse", "HEAD"], status)
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FACT_JAX_COMMIT")
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
