"""Uni-LoRA against peft: the same projection of the same vector gives the same features."""

import numpy as np
import peft
import torch
import torch_models
from stored.cases import Draw, random_base

from fact_jax import ViTConfig, features
from fact_jax.backbone.vit import ViT
from fact_jax.tuning import UniLoRA

SMALL = ViTConfig(64, 3, 4, 256, 16, 32, layer_norm_eps=1e-12, precision="highest")


def test_uni_lora_is_peft_s(compare):
    base, images, method = random_base(SMALL, 0), Draw(1)((4, 32, 32, 3)), UniLoRA(300, rank=4)
    theta = np.random.default_rng(0).normal(size=300).astype("float32") * 2
    head = {"kernel": np.eye(64, 64, dtype="float32"), "bias": np.zeros(64, "float32")}
    model = torch_models.hugging_face_vit(SMALL, base, head)
    config = peft.UniLoraConfig(
        r=4, theta_d_length=300, proj_seed=method.seed, target_modules=["q_proj", "v_proj"]
    )
    adapted = peft.get_peft_model(model, config).eval()
    parameters = dict(adapted.named_parameters())
    (name,) = [name for name in parameters if "theta_d" in name]
    with torch.no_grad():
        parameters[name].copy_(torch.from_numpy(theta))
        theirs = adapted(torch_models.nchw(images)).logits.numpy()
    adaptation = method.adaptation({"theta": theta}, SMALL)
    ours = np.asarray(features(ViT(SMALL), base, images, adaptation))
    frozen = np.asarray(features(ViT(SMALL), base, images))
    assert np.abs(ours - frozen).max() > 0.1 * np.abs(ours).max()
    compare({"features": theirs}, {"features": ours}, 1e-5)
