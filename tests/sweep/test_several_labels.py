"""Sweeps over CSV files: several labels a picture, weights of classes, selection by a measure."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from fact_jax import Predictor, UserError, load_factors, load_vit, normalise
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.sweep.findings import Findings
from fact_jax.training.metrics import measures, multi_label_measures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty pictures, in one CSV file with a class each and in another with several labels."""
    root, rng = tmp_path_factory.mktemp("csv"), np.random.default_rng(0)
    single, several = ["path,label"], ["path,labels"]
    for i in range(30):
        red, bright = i % 2, i % 3 == 0
        pixels = rng.normal([200 * red, 60, 120 * bright], 15, (16, 16, 3)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.png")
        single.append(f"{i}.png,{'red' if red else 'other'}")
        several.append(f"{i}.png,{'|'.join(['red'] * red + ['bright'] * bright)}")
    (root / "one.csv").write_text("\n".join(single))
    (root / "many.csv").write_text("\n".join(several))
    return root


def config(folder, tiny, **changes):
    c = quickstart.get_config()
    c.update(tasks="csv_one,csv_many", methods="linear", epochs=2, data_dir=str(folder), **tiny)
    c.linear = {"learning_rates": (1e-4, 0.1)}
    c.update(batch_size=8, **changes)
    return c


@pytest.fixture
def swept(folder, tiny, tmp_path):
    """Results by task, and the calls of `Findings.score`."""
    calls, score = [], Findings.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Findings, "score", lambda f, m="": calls.append(m) or score(f, m))
        settings = config(folder, tiny, class_weights="balanced", select_by="macro_f1")
        results = run_sweep(settings, str(tmp_path / "work"), Console(quiet=True))
    return {r.task: r for r in results}, calls, tmp_path / "work"


def test_both_kinds_of_tasks_are_trained_chosen_and_stored(swept, folder, tiny):
    results, calls, workdir = swept
    assert calls == ["macro_f1", "macro_f1", ""] * 2  # two candidates and the final run of each
    one, many = results["csv_one"], results["csv_many"]
    assert one.accuracy == one.measures["accuracy"]
    assert many.accuracy == many.measures["map"]
    assert (one.label_precision, many.confusion, many.examples) == (None, None, None)
    assert len(many.label_precision) == 2
    assert one.settings["class_weights"] == "balanced"
    model, base = load_vit("vit_tiny", tiny["weights"])
    for task, result in results.items():
        trained = load_factors(workdir / "factors" / f"{result.cell}.safetensors")
        assert trained.multi_label == (task == "csv_many")
        data = open_task(get_task(task), DataSettings(str(folder), image_size=16))
        test = data.load("test")
        images = np.asarray(normalise(test.images, "imagenet"))
        logits = Predictor(model, base, trained).logits(images)
        measure = multi_label_measures if trained.multi_label else measures
        assert measure(test.labels, logits) == pytest.approx(result.measures, abs=1e-3)
    stored = json.loads((workdir / "results" / f"{many.cell}.json").read_text())
    assert stored["measures"] == many.measures
    header, *rows = (workdir / "results.csv").read_text().splitlines()
    assert header.endswith("balanced_accuracy,macro_f1,auroc,ece,map,exact")
    assert len(rows) == 2


@pytest.mark.parametrize(("task", "measure"), [("csv_one", "map"), ("csv_many", "accuracy")])
def test_a_measure_of_the_other_kind_is_refused_before_training(
    folder, tiny, tmp_path, task, measure
):
    settings = config(folder, tiny, tasks=task, select_by=measure)
    with pytest.raises(UserError, match=f"select_by is '{measure}', but pictures of {task} have"):
        run_sweep(settings, str(tmp_path), Console(quiet=True))


def test_weights_of_classes_reach_the_training(folder, tiny, tmp_path):
    """One label is twice as rare as its absence, so that its weight changes the loss."""
    losses = {}
    for weights in ("", "balanced"):
        settings = config(folder, tiny, tasks="csv_many", class_weights=weights)
        settings.linear = {"learning_rate": 1e-4}
        (result,) = run_sweep(settings, str(tmp_path / f"w{weights}"), Console(quiet=True))
        losses[weights] = result.losses[0]
    assert losses["balanced"] > 1.05 * losses[""]
