"""Every kind of weight file gives the same parameters, and other models are named."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from weight_layouts import VARIANT, hf_vit, refused, same, timm, transformers_5

from fact_jax import UserError, get_variant, load_vit
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum, write_npz


def test_hugging_face_vit_model(base, tmp_path):
    extra = {"pooler.dense.weight": np.ones((192, 192)), "pooler.dense.bias": np.ones(192)}
    save_file({**hf_vit(base), **extra}, tmp_path / "model.safetensors")
    assert same(base, tmp_path / "model.safetensors").config.layer_norm_eps == 1e-12
    settings = {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = same(base, tmp_path).config  # the folder
    assert (config.layer_norm_eps, config.gelu) == (1e-5, "tanh")
    assert same(base, tmp_path, gelu="exact").config.gelu == "exact"
    wrong = [("num_attention_heads", 6), ("hidden_act", "relu"), ("hidden_act", ["gelu"])]
    wrong += [("layer_norm_eps", value) for value in ("", -1, True, 10**400, float("nan"))]
    texts = [json.dumps({**settings, name: value}) for name, value in wrong]
    for text in (*texts, "[" * 200_000, "[]", "{", " " * 2_000_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            load_vit(VARIANT, tmp_path)


HEAD = {"weight": np.ones((5, 192)), "bias": np.ones(5)}


def in_a_classifier(base):
    """A decoder's and a classifier's tensors are dropped."""
    head = {f"classifier.{name}": array for name, array in HEAD.items()}
    decoder = {"decoder.decoder_pos_embed": np.ones((1, 197, 32))}
    return {f"vit.{k}": v for k, v in hf_vit(base).items()} | head | decoder


def timm_under(prefix):
    head = {f"head.{name}": array for name, array in HEAD.items()}
    return lambda base: {prefix + k: v for k, v in (timm(base) | head).items()}


def mae(base):
    """The original file of MAE: {'model': state_dict}."""
    decoder = {"mask_token": np.ones((1, 1, 128)), "decoder_embed.bias": np.ones(128)}
    return {f"model.{k}": v for k, v in (timm(base) | decoder).items()}


@pytest.mark.parametrize(
    "make", [in_a_classifier, transformers_5, timm_under(""), timm_under("module."), mae, hf_vit]
)
def test_layouts_in_safetensors_and_pytorch_files(base, tmp_path, make):
    tensors = make(base)
    save_file(tensors, tmp_path / "model.safetensors")
    same(base, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(torch_bytes(tensors))
    same(base, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, "truncated")


def chunked(base, prefix):
    """Names of DINOv2's training: block 2 is `blocks.1.2`, in the second chunk of two."""
    names = {
        k: re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", k)
        for k in timm(base)
    }
    return {prefix + names[k]: v for k, v in timm(base).items()}


def test_training_checkpoints_of_dinov2(base, tmp_path):
    head = {"teacher.dino_head.mlp.0.weight": np.ones((4, 192), np.float32)}
    teacher = {**chunked(base, "teacher.backbone."), **head}
    teacher["teacher.backbone.mask_token"] = np.ones((1, 192), np.float32)
    assert "teacher.backbone.blocks.1.2.norm1.weight" in teacher
    path = tmp_path / "teacher_checkpoint.pth"
    path.write_bytes(torch_bytes(teacher))
    same(base, path)
    student = jax.tree.map(lambda x: x + 1, chunked(base, "student.backbone."))
    path.write_bytes(torch_bytes({**student, **teacher}))
    with pytest.warns(UserWarning, match="a student and a teacher; the teacher is read"):
        same(base, path)


@pytest.mark.parametrize("make", [timm, hf_vit])
def test_a_vit_without_biases_of_query_key_and_value_has_zeros(base, tmp_path, make):
    path = tmp_path / "m.safetensors"
    pattern = re.compile(r"(qkv|query|key|value)\.bias$")
    save_file({k: v for k, v in make(base).items() if not pattern.search(k)}, path)
    zeros = jax.tree_util.tree_map_with_path(
        lambda keys, x: x * 0 if re.search("(query|key|value)'.*bias", str(keys)) else x, base
    )
    assert checksum(zeros) != checksum(base)
    same(zeros, path)
    missing = {k: v for k, v in make(base).items() if not re.search(r"2\..*(qkv|key)\.bias$", k)}
    save_file(missing, path)
    refused(path, "holds no tensor")


def peft(tensors):
    """The ViT of `model.save_pretrained` without a merge: LoRA of query and value."""
    out = {}
    for name, value in tensors.items():
        if "query.weight" in name:
            module = f"base_model.model.vit.{name.removesuffix('.weight')}"
            out[f"{module}.lora_A.default.weight"] = np.ones((4, 192), np.float32)
            name = name.replace("query.weight", "query.base_layer.weight")
        out[f"base_model.model.vit.{name}"] = value
    return out


def beit(tensors):
    """microsoft/beit-base: relative positions in each block, keys without a bias."""
    table = "encoder.layer.0.attention.attention.relative_position_bias"
    out = {k: v for k, v in tensors.items() if "key.bias" not in k and "position_emb" not in k}
    return {**out, f"{table}.relative_position_bias_table": np.ones((732, 3), np.float32)}


FOREIGN = {
    "PEFT": (lambda base: peft(hf_vit(base)), r"is a PEFT model .*merge_and_unload\(\)"),
    "adapter": (
        lambda base: {k: v for k, v in peft(hf_vit(base)).items() if "lora" in k},
        "is a PEFT model",
    ),
    "BEiT": (lambda base: beit(hf_vit(base)), "is a BEiT, or has relative positions"),
    "timm's BEiT": (
        lambda base: {
            "blocks.0.attn.q_bias": np.ones(192),
            "blocks.0.gamma_1": np.ones(192),
            **{k: v for k, v in timm(base).items() if not re.search("pos_embed|qkv.bias", k)},
        },
        "is a BEiT",
    ),
    "registers": (
        lambda base: {**timm(base), "register_tokens": np.ones((1, 4, 192))},
        "3 blocks with registers; expected .* 3 blocks of the plain kind",
    ),
    "gated": (
        lambda base: {k.replace("mlp.fc1", "mlp.w12"): v for k, v in timm(base).items()},
        "is a ViT with gated MLPs",
    ),
    "Swin": (lambda _: {"layers.0.blocks.0.norm1.weight": np.ones(3)}, "is a Swin Transformer"),
    "Hugging Face's Swin": (
        lambda _: {
            "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table": np.ones(3)
        },
        "is a Swin Transformer",
    ),
    "ResNet": (lambda _: {"layer1.0.conv1.weight": np.ones(3)}, "is a convolutional network"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_models_are_named(base, tmp_path, case):
    make, words = FOREIGN[case]
    save_file(make(base), tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", words)


@pytest.mark.parametrize("kind", ["hf", "timm"])
def test_the_distillation_token_of_deit_is_dropped_with_a_warning(base, tmp_path, kind):
    make, token, table = {
        "hf": (hf_vit, "embeddings.distillation_token", "embeddings.position_embeddings"),
        "timm": (timm, "dist_token", "pos_embed"),
    }[kind]
    tensors = make(base)
    tensors[token] = np.ones((1, 1, 192), np.float32)
    tensors[table] = np.insert(tensors[table], 1, 7.0, axis=1)
    save_file(tensors, tmp_path / "deit.safetensors")
    with pytest.warns(UserWarning, match="distillation token"):
        same(base, tmp_path / "deit.safetensors")


def test_a_sharded_checkpoint(base, tmp_path):
    tensors = hf_vit(base)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in (0, 1)}
    for shard, inside in shards.items():
        save_file({k: tensors[k] for k in inside}, tmp_path / shard)
    index = {"weight_map": {k: shard for shard, inside in shards.items() for k in inside}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    same(base, tmp_path)
    same(base, path)

    save_file({"x": np.ones(3)}, tmp_path.parent / "secret.safetensors")
    for shard, match in (
        ("../secret.safetensors", r"\.\./secret.*expected a .safetensors file beside it"),
        ("model-3.safetensors", "not beside it"),
        ("model-00001-of-00002.safetensors", "it does not"),
    ):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], "x": shard}}))
        with pytest.raises(UserError, match=match):
            load_vit(VARIANT, tmp_path)
    for content in ('{"weight_map": [1]}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(UserError, match="not the index"):
            load_vit(VARIANT, tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_checksum_is_that_of_the_numbers_whatever_the_file(base, tmp_path, dtype):
    half = jax.tree.map(lambda x: x.astype(dtype), base)
    exact = jax.tree.map(lambda x: x.astype(np.float32), half)
    save_file(timm(half), tmp_path / "timm.safetensors")
    write_npz(tmp_path / "google.npz", get_variant(VARIANT), half, dtype)  # bfloat16 as |V2
    for path in tmp_path.iterdir():
        same(exact, path)
        assert checksum(load_vit(VARIANT, path)[1]) == checksum(exact)
    exact["cls"][..., -1] *= 1 + 1e-6
    assert checksum(exact) != checksum(load_vit(VARIANT, path)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "blocks.0.attn.q_norm.weight": np.ones(64)}, "does not have.*q_norm"),
        (lambda t: {**t, "fc_norm.weight": np.ones(192)}, "does not have.*fc_norm"),
        (
            lambda t: {k: v for k, v in t.items() if k != "blocks.1.mlp.fc2.bias"},
            "no tensor 'blocks.1.mlp.fc2.bias'",
        ),
        (
            lambda t: {**t, "blocks.1.mlp.fc2.weight": np.ones((768, 192))},
            r"is \[768, 192\]; expected \[192, 768\]",
        ),
        (
            lambda t: {**t, "pos_embed": np.ones((1, 196, 192))},
            "position table.*a row for the class token",
        ),
        (
            lambda t: {**t, "norm.bias": np.ones(192, np.int32)},
            "of type int32; expected floating-point",
        ),
        (
            lambda t: {k.replace("mlp", "ffn"): v for k, v in t.items()},
            r"no tensor 'blocks.0.mlp.fc1",
        ),
        (
            lambda _: {"a": np.ones(3)},
            "not a ViT in a layout known here.*Hugging Face ViT.*it holds a",
        ),
        (  # neither a student nor its teacher is taken by chance
            lambda t: {f"{p}.{k}": v for k, v in t.items() for p in ("model", "model_ema")},
            "several ViTs, under 'model.', 'model_ema.'",
        ),
    ],
)
def test_wrong_architectures_are_named(base, tmp_path, change, words):
    save_file(change(timm(base)), tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", words)


def test_a_wrong_variant_is_named(base, tmp_path):
    save_file(timm(base), tmp_path / "m.safetensors")
    words = r"width 192 and 3 blocks.*\(vit_ti16\); expected.*width 768"
    refused(tmp_path / "m.safetensors", words, "vit_b16")


def test_folders_without_one_clear_file(base, tmp_path):
    with pytest.raises(UserError, match="found: none"):
        load_vit(VARIANT, tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(timm(base), tmp_path / name)
    with pytest.raises(UserError, match="a.safetensors, b.safetensors"):
        load_vit(VARIANT, tmp_path)
