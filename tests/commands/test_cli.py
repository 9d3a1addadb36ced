"""The parts that all commands share."""

import os
import re
import subprocess
import sys

import jax
import pytest
from places import ROOT

from fact_jax import UserError
from fact_jax.cli import process
from fact_jax.sweep import versions

CACHED = """
import sys
from fact_jax.cli import process

def main():
    import jax
    import jax.numpy as jnp

    @jax.jit
    def program(x):
        return jnp.sin(x) @ x

    program(jnp.ones((3, 3)))

process.run(main)
"""


def test_commands_share_compiled_programs_on_disk(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {
        "FACT_JAX_CACHE": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def entries():
        """Files of programs, without the times of their last use."""
        command = [sys.executable, "-c", CACHED]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        files = [p for p in (tmp_path / "xla").iterdir() if not p.name.endswith("-atime")]
        return {p.name: p.stat().st_mtime_ns for p in files}

    first = entries()
    assert any("program" in name for name in first)
    assert entries() == first


def git_knows_the_commit():
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not git_knows_the_commit(), reason="no checkout that git reads")
def test_where_git_knows_no_commit_the_environment_does(monkeypatch, tmp_path):
    assert re.fullmatch("[0-9a-f]{40}(\\+changes)?", versions._commit())
    monkeypatch.setenv("FACT_JAX_COMMIT", "abc+changes")
    assert versions._commit() != "abc+changes"
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "versions.py"))
    assert versions._commit() == "abc+changes"
    monkeypatch.delenv("FACT_JAX_COMMIT")
    assert versions._commit() is None


def test_the_processor_is_named_where_linux_says_it_and_elsewhere(monkeypatch):
    amd = "processor : 0\ncpu family : 25\nmodel : 17\nmodel name : AMD EPYC\n\nprocessor : 1\n"
    monkeypatch.setattr(versions.Path, "read_text", lambda path: amd)
    assert versions._processor() == "AMD EPYC, family 25, model 17"
    monkeypatch.setattr(versions.Path, "read_text", lambda path: "processor : 0\nBogoMIPS : 50\n")
    assert versions._processor() == versions.platform.machine()

    def absent(path):
        raise FileNotFoundError

    monkeypatch.setattr(versions.Path, "read_text", absent)
    assert versions._processor()


@pytest.mark.parametrize("how", ["host:1", "host,2,0", "host:1,2", "host:1,two,0", "all"])
def test_what_distributed_expects(how):
    with pytest.raises(UserError, match="expected 'auto', or HOST:PORT,COUNT,INDEX"):
        process.join_processes(how)


def test_several_processes_leave_sigterm_to_us(monkeypatch):
    """jax's preemption service would put its own handler there, and the sweep went on."""
    services = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *how: services.append(jax.config.jax_enable_preemption_service),
    )
    process.join_processes("host:1,2,0")
    process.join_processes("auto")
    assert services == [False, False]
