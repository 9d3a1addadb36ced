"""A Hugging Face checkpoint is adapted here, and gives the same logits in PyTorch's FacT.

Every step on our side is a command that a newcomer types.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from places import ROOT
from stored.cases import Draw
from torch_fact import add_fact
from torch_models import import_timm, nchw

from fact_jax import FacTTK, FacTTT

METHODS = {"fact_tt": FacTTT(16, scale=10.0), "fact_tk": FacTTK(16, scale=10.0)}


def command(module: str, **flags) -> str:
    out = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}"]
        + [f"--{name.replace('__', '.')}={value}" for name, value in flags.items()],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout + out.stderr


def save_checkpoint(folder: Path) -> None:
    """ViT-Ti/16 for 64 pixels with random parameters, as transformers saves it."""
    config = transformers.ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=64
    )
    model, draw = transformers.ViTForImageClassification(config), Draw(0)
    for parameter in model.parameters():
        parameter.data += torch.from_numpy(draw(tuple(parameter.shape), 0.05))
    model.save_pretrained(folder)


def test_the_same_logits_in_pytorch(tmp_path, compare):
    checkpoint, images = tmp_path / "checkpoint", tmp_path / "images.npy"
    save_checkpoint(checkpoint)
    np.save(images, Draw(1)((8, 64, 64, 3)))
    command(
        "vtab",
        config="configs/quickstart.py",
        workdir=tmp_path / "run",
        config__tasks="digits",
        config__methods=",".join(METHODS),
        config__variant="vit_ti16",
        config__weights=checkpoint,
        config__image_size=64,
        config__train_limit=128,
        config__eval_limit=64,
        config__epochs=2,
        config__warmup_epochs=0,
        config__fact_tt__scale=10.0,
        config__fact_tk__scale=10.0,
        config__data_dir=tmp_path / "data",
    )
    command("export", variant="vit_ti16", weights=checkpoint, out=tmp_path / "vit.npz")
    for name, method in METHODS.items():
        factors = next((tmp_path / "run" / "factors").glob(f"*{name}*"))
        exported, logits = tmp_path / f"{name}.pt", tmp_path / f"{name}.npy"
        said = command("export", factors=factors, out=exported)
        assert "scale 10" in said
        assert "rank 16" in said
        assert "layer_norm_eps is 1e-12 here and 1e-06 in timm's ViT: set it there" in said
        command("predict", weights=checkpoint, factors=factors, images=images, out=logits)

        vit = import_timm().create_model(
            "vit_tiny_patch16_224",
            img_size=64,
            num_classes=10,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-12),
            checkpoint_path=tmp_path / "vit.npz",
        )
        x = nchw(np.load(images))
        before = vit.eval().forward_features(x)[:, 0].detach().numpy()
        add_fact(vit, method)
        tensors = torch.load(exported, weights_only=True)
        missing, unexpected = vit.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert not any("FacT" in name or "head" in name for name in missing)
        with torch.no_grad():
            expected = vit(x).numpy()
            after = vit.forward_features(x)[:, 0].numpy()
        assert np.abs(after - before).max() > 0.05  # it was adapted
        compare({name: np.load(logits)}, {name: expected}, 1e-5)
