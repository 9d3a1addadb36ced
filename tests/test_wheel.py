"""The wheel, built here and used in another folder; its dependencies."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from places import ROOT

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "fact_jax", "configs")


def test_requirements_txt_is_the_package_with_its_extra_tfds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    extras = project["optional-dependencies"]
    assert listed == [*project["dependencies"], *extras["tfds"]]
    assert not [name for name in project["dependencies"] if name.startswith("tensorflow")]
    assert {"fact-jax[tfds]"} <= set(extras["vtab"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, of a copy: setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "src").mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "src" / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, folder / "src" / name)
    pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        f"--wheel-dir={folder}",
        folder / "src",
    )
    return next(folder.glob("*.whl"))


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_package_its_data_and_the_configs_and_no_more(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = (p for p in (ROOT / "fact_jax").rglob("*") if "__pycache__" not in p.parts)
    ours = [path for path in files if path.is_file()]
    configs = [p for p in (ROOT / "configs").iterdir() if p.suffix in (".py", ".json")]
    assert names == {
        *(str(path.relative_to(ROOT)) for path in ours),
        *(f"fact_jax/configs/{path.name}" for path in configs),
    }
    assert any(name.endswith(".npz") for name in names)


@pytest.fixture(scope="module")
def fact_jax(wheel, tmp_path_factory):
    """Runs ``fact-jax`` as installed from the wheel, in a folder with configs of its own."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    pip("install", "--no-deps", "--no-index", f"--target={site}", wheel)
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "mine.py").write_text(
        "from configs import base, tt_paper\n"
        "def get_config():\n"
        "    config = tt_paper.get_config()\n"
        "    config.tasks = 'digits'\n"
        "    return config\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments):
        command = [sys.executable, site / "bin" / "fact-jax", *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True
        )

    return run


def test_the_default_config_and_the_user_s_own_run_anywhere(fact_jax):
    out = fact_jax("vtab", "--config", "configs/mine.py", "--dry_run")
    assert out.returncode == 0, out.stderr
    assert "digits-fact_tt-seed42" in out.stdout
    assert "elsewhere" in out.stdout
    out = fact_jax("vtab", "--dry_run", "--config.seeds=3")
    assert out.returncode == 0, out.stderr
    assert "location-fact_tk-seed3" in out.stdout


def test_help_and_advice_are_of_the_console_script(fact_jax):
    out = fact_jax("data", "--help")
    assert out.returncode == 0, out.stderr
    assert "fact-jax data --check" in out.stdout
    assert "--data_dir=" in out.stdout
    assert "experiments" not in out.stdout
    out = fact_jax("vtab", "--config=compar:vtab", "--dry_run")
    assert out.returncode == 2
    assert "Did you mean compare?" in out.stderr
