"""The parameters of a ViT under the names of Hugging Face's and timm's files.

The names are written out here once more, as they stand in published files
(google/vit-base-patch16-224-in21k, timm/vit_base_patch16_224); tests/parity reads files that
transformers and timm themselves have written.
"""

import jax
import numpy as np
import pytest

from fact_jax import UserError, load_vit

VARIANT = "vit_ti16"
ENCODER = "Transformer/encoderblock/"
ATTENTION = ENCODER + "MultiHeadDotProductAttention_1/"


def flat(base):
    leaves = jax.tree_util.tree_leaves_with_path(base)
    return {"/".join(str(k.key) for k in keys): np.asarray(value) for keys, value in leaves}


def torch_tensors(base, outer, block, inner):
    """Linear layers transposed and the patch embedding [d, 3, y, x], as PyTorch has them."""
    arrays = flat(base)
    out = {}
    for ours, theirs in outer.items():
        out[theirs] = arrays[ours]
        if ours == "embedding/kernel":
            out[theirs] = arrays[ours].transpose(3, 2, 0, 1)
    for ours, theirs in inner.items():
        for i, value in enumerate(arrays[ENCODER + ours]):
            out[block.format(i) + theirs] = value.T if ours.endswith("kernel") else value
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def with_leaves(modules):
    """kernel/scale -> weight, bias -> bias."""
    out = {}
    for ours, theirs in modules.items():
        first = "scale" if "LayerNorm" in ours else "kernel"
        out |= {f"{ours}/{first}": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
    return out


def hf_vit(base):
    outer = {
        "cls": "embeddings.cls_token",
        "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
        "embedding/kernel": "embeddings.patch_embeddings.projection.weight",
        "embedding/bias": "embeddings.patch_embeddings.projection.bias",
        "Transformer/encoder_norm/scale": "layernorm.weight",
        "Transformer/encoder_norm/bias": "layernorm.bias",
    }
    attention = "MultiHeadDotProductAttention_1/"
    modules = {
        "LayerNorm_0": "layernorm_before",
        "LayerNorm_2": "layernorm_after",
        attention + "query": "attention.attention.query",
        attention + "key": "attention.attention.key",
        attention + "value": "attention.attention.value",
        attention + "out": "attention.output.dense",
        "MlpBlock_3/Dense_0": "intermediate.dense",
        "MlpBlock_3/Dense_1": "output.dense",
    }
    return torch_tensors(base, outer, "encoder.layer.{}.", with_leaves(modules))


def transformers_5(base, **more):
    """The names of transformers 5's own modules, which a state dict saved by hand has."""
    names = {"encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj"}
    names |= {"attention.attention.key": "attention.k_proj"}
    names |= {"attention.attention.value": "attention.v_proj"}
    names |= {"attention.output.dense": "attention.o_proj"}
    names |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", **more}
    tensors = hf_vit(base)
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def timm(base):
    outer = {
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "embedding/kernel": "patch_embed.proj.weight",
        "embedding/bias": "patch_embed.proj.bias",
        "Transformer/encoder_norm/scale": "norm.weight",
        "Transformer/encoder_norm/bias": "norm.bias",
    }
    modules = {
        "LayerNorm_0": "norm1",
        "LayerNorm_2": "norm2",
        "MultiHeadDotProductAttention_1/out": "attn.proj",
        "MlpBlock_3/Dense_0": "mlp.fc1",
        "MlpBlock_3/Dense_1": "mlp.fc2",
    }
    tensors = torch_tensors(base, outer, "blocks.{}.", with_leaves(modules))
    arrays = flat(base)
    for i in range(len(arrays[f"{ATTENTION}query/bias"])):
        parts = [arrays[f"{ATTENTION}{n}/kernel"][i].T for n in ("query", "key", "value")]
        tensors[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(parts)
        parts = [arrays[f"{ATTENTION}{n}/bias"][i] for n in ("query", "key", "value")]
        tensors[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(parts)
    # safetensors stores an array's memory as it lies.
    return {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def same(base, path, **changes):
    """The model of a file, whose parameters are asserted to be these, in float32."""
    model, read = load_vit(VARIANT, path, **changes)
    jax.tree.map(np.testing.assert_array_equal, read, base)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(read)} == {"float32"}
    return model


def refused(path, match, variant=VARIANT):
    with pytest.raises(UserError, match=match) as error:
        load_vit(variant, path)
    assert path.name in str(error.value)
