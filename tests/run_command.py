"""Commands as a user starts them, forked from a process that has imported the libraries.

A new interpreter imports JAX, Flax and Orbax for two seconds, and TensorFlow for seven.
What a command does after its imports is the same here: arguments, output, exit status, signals.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

from places import ROOT

_server = multiprocessing.get_context("forkserver")
# TensorFlow is most of it.
_server.set_forkserver_preload(
    [
        "fact_jax.report.terminal",
        "fact_jax.sweep.runner",
        "fact_jax.serving.predict",
        "tensorflow_datasets",
        "tensorflow",
    ]
)


def run_command(module, *arguments, timeout=600, **environment):
    """``python -m module arguments`` in the repository's folder, with what it printed."""
    environment = {**os.environ, "COLUMNS": "200", "JAX_PLATFORMS": "cpu", **environment}
    command = [module, *map(str, arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sent = map(_Sent, (out, err))
        process = _server.Process(target=_start, args=(command, environment, *sent))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(command, process.exitcode, *printed)


class _Sent:
    """An open file on its way to another process."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return _received, (multiprocessing.reduction.DupFd(self.file.fileno()),)


def _received(duplicate):
    return duplicate.detach()


def _start(command, environment, out, err):
    for descriptor, standard in ((out, 1), (err, 2)):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
