"""Several devices on one CPU, for processes that tests start."""

import os

from places import ROOT


def on_host_devices(count):
    """The environment of a process that sees this many devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
