"""The figures of where tasks change the network."""

from pathlib import Path

import numpy as np
import pytest
from report_results import result, write
from written_factors import written

from fact_jax import FacTTT, VPTDeep, get_variant
from fact_jax.report.changes import change_figures
from fact_jax.report.sections import sections
from fact_jax.report.study import Study, read_study


def study_of(folder: Path, methods: dict[str, float]) -> Study:
    tasks = ("digits", "fashion")
    return read_study(
        write(folder, [result(t, m, 0, a) for t in tasks for m, a in methods.items()])
    )


def figures_of(study: Study):
    (section,) = sections(study.tasks)
    return change_figures(study.systems, section)


def test_the_best_system_of_increments_is_shown(tmp_path: Path):
    config = get_variant("vit_mini")
    (tmp_path / "factors").mkdir()
    for task in ("digits", "fashion"):
        written(tmp_path / "factors" / f"{task}-vpt_deep-seed0.safetensors", VPTDeep(2), config)
        written(tmp_path / "factors" / f"{task}-fact_tt-seed0.safetensors", FacTTT(2), config)
    study = study_of(tmp_path, {"linear": 60.0, "fact_tt": 80.0, "vpt_deep": 90.0})
    changes, similarity = figures_of(study)
    assert "where fact_tt changes the network" in changes.caption
    assert "MLP have 4 times the weights" in changes.caption
    (image,) = changes.figure.axes[0].images
    shares = np.asarray(image.get_array())[..., 3]
    assert shares.shape == (6, 6)  # sites and blocks
    assert shares[4:].mean() > 2 * shares[:4].mean()  # of equal cores, the MLP has the most
    assert [text.get_text() for text in similarity.figure.axes[0].texts][::3] == ["1.00", "1.00"]


def test_a_damaged_factor_file_is_named(tmp_path: Path):
    (tmp_path / "factors").mkdir()
    for task in ("digits", "fashion"):
        (tmp_path / "factors" / f"{task}-fact_tt-seed0.safetensors").write_bytes(b"damaged")
    study = study_of(tmp_path, {"fact_tt": 80.0})
    with pytest.warns(UserWarning, match=r"digits-fact_tt-seed0\.safetensors .*without fact_tt"):
        assert figures_of(study) == []


def test_without_factor_files_there_are_no_figures(tmp_path: Path):
    assert figures_of(study_of(tmp_path, {"fact_tt": 80.0})) == []
