"""A work directory of commit 8fa6322 (tests/stored/sweep) is one of today's."""

import shutil

from places import ROOT
from rich.console import Console

from configs import quickstart
from fact_jax import load_factors
from fact_jax.cli.local import run_sweep
from fact_jax.sweep import group

STORED = ROOT / "tests" / "stored" / "sweep"


def test_its_cells_are_finished_and_its_table_is_the_same(tmp_path, monkeypatch):
    config = quickstart.get_config()
    config.update(tasks="digits", methods="linear,fact_tt", epochs=2, image_size=16)
    config.update(train_limit=32, eval_limit=32, batch_size=16, eval_batch_size=32)
    config.fact_tt.update({"rank": 2, "scales": (0.1, 1.0)})
    workdir = shutil.copytree(STORED, tmp_path / "work")
    monkeypatch.setattr(group, "RunStack", None)  # nothing is left to train
    results = run_sweep(config, str(workdir), Console(quiet=True))
    assert [result["cell"] for result in results] == ["digits-linear-seed0", "digits-fact_tt-seed0"]
    # config.json is that of the last run, which has more settings today.
    for path in {*STORED.rglob("*.*")} - {STORED / "config.json"}:
        assert (workdir / path.relative_to(STORED)).read_bytes() == path.read_bytes(), path
    read = load_factors(workdir / "factors" / "digits-fact_tt-seed0.safetensors")
    assert (read.method.rank, read.method.scale) == (2, results[1]["scale"])
