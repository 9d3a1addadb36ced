"""What all commands share."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli
from fact_jax import UserError

CTRL_C_IN_A_FINALISER = """
import os, signal, threading, time
from experiments import cli

class Slow:
    def __del__(self):
        time.sleep(1)  # the signal comes here, where its exception cannot be raised

def main():
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    slow = Slow()
    del slow
    print("gone on", flush=True)
    cli.check_signals()
    print("not reached", flush=True)

cli.run(main)
"""


def test_a_ctrl_c_in_a_finaliser_is_not_lost():
    out = subprocess.run(
        [sys.executable, "-c", CTRL_C_IN_A_FINALISER], capture_output=True, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert out.stdout == "gone on\n"
    assert out.returncode == 130
    assert out.stderr.strip() == "Interrupted. Run the same command again to go on."


@pytest.mark.parametrize("how", ["host:1", "host,2,0", "host:1,2", "host:1,two,0", "all"])
def test_what_distributed_expects(how):
    with pytest.raises(UserError, match="expected 'auto', or HOST:PORT,COUNT,INDEX"):
        cli.join_processes(how)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.fact_tt.scalez=1", ["unknown setting 'scalez'. Did you mean \"scale\"", "file"]),
        ("--config.fact_tt.x.y=1", ["unknown setting 'x'. The config's file"]),
        ("--config.fact_tt.scales=a,b", ["config.fact_tt.scales is ('a,b',); expected numbers"]),
        ("--config.foo=1", ["unknown setting 'foo'. The config's file"]),
        ("--config.fact_tt+vpt_deep.x=1", ["characters that no name has"]),
        ("--config.seeds=(0,a)", ["config.seeds is ('(0,a)',); expected whole numbers"]),
    ],
)
def test_settings_that_are_none_are_named(override, words):
    command = [sys.executable, "-m", "experiments.vtab", "--config", "configs/quickstart.py"]
    out = subprocess.run(
        [*command, override, "--dry_run"], capture_output=True, text=True, check=False
    )
    assert out.returncode == 2
    assert all(word in out.stderr for word in words), out.stderr
    assert "Traceback" not in out.stderr
