"""The newer kinds of ViTs in the bank, and in a sweep from its plan to its predictions."""

import jax
import numpy as np
import pytest
from backbone_kinds import KINDS, tiny, tiny_vit
from tried_methods import ALL, random_factors

from configs import quickstart
from fact_jax import VARIANTS, Bank, Predictor, load_factors, load_vit
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.files.factors import TrainedTask
from fact_jax.files.weights import write_npz


def trained(kind: str, name: str, seed: int, path) -> TrainedTask:
    model, base = tiny_vit(kind)
    rng = np.random.default_rng(seed)
    head = {"kernel": rng.normal(size=(24, 3)).astype("f4"), "bias": np.zeros(3, "f4")}
    factors = random_factors(ALL[name], model.config, base, seed)
    return TrainedTask(ALL[name], factors, head, {"vit": {}}, path / f"{seed}.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_is_what_each_predictor_says(kind, tmp_path):
    names = ("lora_all", "vpt_deep") if kind == "so400m" else ("fact_tt", "vpt_deep")
    tasks = {name: trained(kind, name, i, tmp_path) for i, name in enumerate(names)}
    images = np.random.default_rng(9).normal(size=(4, 16, 16, 3)).astype("f4")
    bank = Bank(*tiny_vit(kind), capacity=2)
    bank.add_all(tasks)
    order = [names[i % 2] for i in range(4)]
    alone = {name: Predictor(*tiny_vit(kind), task).logits(images) for name, task in tasks.items()}
    for i, logits in enumerate(bank.logits(images, order)):
        expected = alone[order[i]][i]
        np.testing.assert_allclose(logits, expected, atol=3e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["rope_gated", "siglip"])
def test_a_sweep_trains_and_its_files_predict(kind, tmp_path, monkeypatch):
    model, base = tiny_vit(kind)
    monkeypatch.setitem(VARIANTS, "vit_kind", tiny(kind))
    write_npz(tmp_path / "kind.npz", model.config, base)
    config = quickstart.get_config()
    config.update({"variant": "vit_kind", "weights": str(tmp_path / "kind.npz"), "image_size": 16})
    config.update({"tasks": "digits", "methods": "fact_tt", "epochs": 2, "warmup_epochs": 0})
    config.update({"train_limit": 64, "eval_limit": 50})
    (result,) = run_sweep(config, str(tmp_path / "work"), Console(quiet=True))
    task = load_factors(tmp_path / "work" / "factors" / f"{result.cell}.safetensors")
    assert task.metadata["vit"]["pooling"] == model.config.pooling
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((task.factors, task.head)))
    assert np.abs(task.factors["V"]).max() > 0
    vit = load_vit("vit_kind", tmp_path / "kind.npz", **task.forward_settings)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("f4")
    assert Predictor(*vit, task).logits(images).shape == (2, 10)
