"""Every kind of weight file gives the same parameters; wrong and hostile files are refused.

The names of the files' tensors are written out here once more, as they stand in published files
(google/vit-base-patch16-224-in21k, facebook/dinov2-small, timm/vit_base_patch16_224,
facebook/deit-base-distilled-patch16-224, facebook/vit-mae-base); tests/parity reads files that
transformers and timm themselves have written.
"""

import gc
import json
import os
import re
import struct
import tracemalloc
import warnings
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fact_jax import UserError, get_variant, load_vit
from fact_jax.backbone.vit import init_base
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum, write_npz

VARIANT = "vit_ti16"
ENCODER = "Transformer/encoderblock/"
ATTENTION = ENCODER + "MultiHeadDotProductAttention_1/"


def flat(base):
    leaves = jax.tree_util.tree_leaves_with_path(base)
    return {"/".join(str(k.key) for k in keys): np.asarray(value) for keys, value in leaves}


@pytest.fixture(scope="module")
def base():
    """Random everything: zeros and ones would hide a swapped bias or gain."""
    rng = np.random.default_rng(0)
    structs = jax.eval_shape(lambda: init_base(get_variant(VARIANT), jax.random.key(0)))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32"), structs)


@pytest.fixture(scope="module")
def zeros(base):
    """Quick to compress."""
    return jax.tree.map(np.zeros_like, base)


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
    for i in range(12):
        parts = [arrays[f"{ATTENTION}{n}/kernel"][i].T for n in ("query", "key", "value")]
        tensors[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(parts)
        parts = [arrays[f"{ATTENTION}{n}/bias"][i] for n in ("query", "key", "value")]
        tensors[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(parts)
    # safetensors stores an array's memory as it lies.
    return {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def same(base, path, **changes):
    model, read = load_vit(VARIANT, path, **changes)
    jax.tree.map(np.testing.assert_array_equal, read, base)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(read)} == {"float32"}
    return model


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


def test_a_classifier_or_a_decoder_around_the_vit_is_dropped(base, tmp_path):
    tensors = {f"vit.{k}": v for k, v in hf_vit(base).items()}
    tensors |= {"classifier.weight": np.ones((5, 192)), "classifier.bias": np.ones(5)}
    tensors["decoder.decoder_pos_embed"] = np.ones((1, 197, 32))
    save_file(tensors, tmp_path / "model.safetensors")
    same(base, tmp_path)


def test_names_of_transformers_5(base, tmp_path):
    """A state dict that transformers 5 did not save itself has its modules' names."""
    names = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    tensors = {}
    for name, tensor in hf_vit(base).items():
        for old, new in names.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    assert "layers.3.mlp.fc2.weight" in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    same(base, tmp_path)


def test_a_file_of_two_vits_is_refused(base, tmp_path):
    """Neither a student nor its teacher is taken by chance."""
    tensors = {f"{p}.{k}": v for k, v in timm(base).items() for p in ("model", "model_ema")}
    save_file(tensors, tmp_path / "two.safetensors")
    refused(tmp_path / "two.safetensors", "several ViTs, under 'model.', 'model_ema.'")


def chunked(base, prefix):
    """Names of DINOv2's training: block 5 is `blocks.1.5`, in the second chunk of four."""
    names = {
        k: re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 4}.{m[1]}", k)
        for k in timm(base)
    }
    return {prefix + names[k]: v for k, v in timm(base).items()}


def test_training_checkpoints_of_dinov2(base, tmp_path):
    head = {"teacher.dino_head.mlp.0.weight": np.ones((4, 192), np.float32)}
    teacher = {**chunked(base, "teacher.backbone."), **head}
    teacher["teacher.backbone.mask_token"] = np.ones((1, 192), np.float32)
    assert "teacher.backbone.blocks.1.5.norm1.weight" in teacher
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
    missing = {k: v for k, v in make(base).items() if not re.search(r"3\..*(qkv|key)\.bias$", k)}
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
    "BEiT": (lambda base: beit(hf_vit(base)), "is a BEiT, another architecture"),
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
        "register_tokens.*It is a ViT with register tokens",
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


@pytest.mark.parametrize("prefix", ["", "module."])
def test_timm_with_fused_qkv(base, tmp_path, prefix):
    extra = {"head.weight": np.ones((5, 192)), "head.bias": np.ones(5)}
    tensors = {prefix + k: v for k, v in {**timm(base), **extra}.items()}
    save_file(tensors, tmp_path / "timm.safetensors")
    assert same(base, tmp_path / "timm.safetensors").config.layer_norm_eps == 1e-6


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
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for shard, inside in shards.items():
        save_file({k: tensors[k] for k in inside}, tmp_path / shard)
    index = {"weight_map": {k: shard for shard, inside in shards.items() for k in inside}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    same(base, tmp_path)
    same(base, path)

    def refused(weight_map, match):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=match):
            load_vit(VARIANT, tmp_path)

    save_file({"x": np.ones(3)}, tmp_path.parent / "secret.safetensors")
    elsewhere = {**index["weight_map"], "x": "../secret.safetensors"}
    refused(elsewhere, r"\.\./secret.*expected a .safetensors file beside it")
    refused({**index["weight_map"], "x": "model-3.safetensors"}, "not beside it")
    refused({**index["weight_map"], "x": "model-00001-of-00002.safetensors"}, "it does not")
    refused([1], "not the index")
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not the index"):
        load_vit(VARIANT, tmp_path)


def test_pytorch_files(base, tmp_path):
    """timm's and the original DeiT, MAE and DINOv2 files: {'model': state_dict}, or a plain one."""
    mae = {**timm(base), "mask_token": np.ones((1, 1, 128)), "decoder_embed.bias": np.ones(128)}
    (tmp_path / "mae.pth").write_bytes(torch_bytes({f"model.{k}": v for k, v in mae.items()}))
    same(base, tmp_path / "mae.pth")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(torch_bytes(hf_vit(base)))
    same(base, folder)
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    refused(folder / "pytorch_model.bin", "truncated")


def test_half_precisions(base, tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = jax.tree.map(lambda x, d=dtype: x.astype(d), base)
        exact = jax.tree.map(lambda x: x.astype(np.float32), half)
        save_file(timm(half), tmp_path / "half.safetensors")
        same(exact, tmp_path / "half.safetensors")
        write_npz(tmp_path / "half.npz", get_variant(VARIANT), half, dtype)  # bfloat16 as |V2
        same(exact, tmp_path / "half.npz")


def test_the_checksum_is_that_of_the_numbers_whatever_the_file(base, tmp_path):
    save_file(timm(base), tmp_path / "timm.safetensors")
    write_npz(tmp_path / "google.npz", get_variant(VARIANT), base)
    sums = {checksum(load_vit(VARIANT, path)[1]) for path in tmp_path.iterdir()}
    assert sums == {checksum(base)}
    tensors = timm(base)
    tensors["blocks.11.mlp.fc2.bias"][-1] += 1e-6 * abs(tensors["blocks.11.mlp.fc2.bias"][-1])
    save_file(tensors, tmp_path / "other.safetensors")
    assert checksum(load_vit(VARIANT, tmp_path / "other.safetensors")[1]) not in sums


def refused(path, match, variant=VARIANT):
    with pytest.raises(UserError, match=match) as error:
        load_vit(variant, path)
    assert path.name in str(error.value)


def test_wrong_variants_and_architectures_are_named(base, tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = timm(base)
    save_file(tensors, path)
    refused(path, r"width 192 and 12 blocks.*\(vit_ti16\); expected.*width 768", "vit_b16")
    save_file({**tensors, "blocks.0.attn.q_norm.weight": np.ones(64)}, path)
    refused(path, "does not have.*q_norm")
    save_file({**tensors, "fc_norm.weight": np.ones(192)}, path)
    refused(path, "does not have.*fc_norm")
    del tensors["blocks.7.mlp.fc2.bias"]
    save_file(tensors, path)
    refused(path, "no tensor 'blocks.7.mlp.fc2.bias'")
    tensors = timm(base)
    tensors["blocks.7.mlp.fc2.weight"] = tensors["blocks.7.mlp.fc2.weight"].T.copy()
    save_file(tensors, path)
    refused(path, re.escape("is [768, 192]; expected [192, 768]"))
    save_file({**timm(base), "pos_embed": np.ones((1, 196, 192))}, path)
    refused(path, "position table.*a row for the class token")
    save_file({**timm(base), "norm.bias": np.ones(192, np.int32)}, path)
    refused(path, "of type int32; expected floating-point")
    renamed = {k.replace("mlp", "ffn"): v for k, v in timm(base).items()}
    save_file(renamed, path)
    refused(path, r"no tensor 'blocks.0.mlp.fc1")
    save_file({"a": np.ones(3)}, path)
    refused(path, "not a ViT in a layout known here.*Hugging Face ViT.*it holds a")


def test_damaged_safetensors(base, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(timm(base), path)
    content = path.read_bytes()
    for cut in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        refused(path, "truncated")
    path.write_bytes(struct.pack("<Q", 2**62) + content[8:])
    refused(path, "damaged")
    header = b'{"cls_token":{"dtype":"F32","shape":[1,1,4000000000],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    refused(path, "damaged")


def npy(shape, dtype="<f4"):
    return header(str({"descr": dtype, "fortran_order": False, "shape": shape}))


def header(text, version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return bytearray(path.read_bytes())


ARRAY = npy((1, 1, 192)) + b"\0" * 768


def with_member(path, base, data, name="cls.npy", method=zipfile.ZIP_DEFLATED):
    """A `.npz` of `base` with another content of one array."""
    write_npz(path, get_variant(VARIANT), base)
    with zipfile.ZipFile(path) as old:
        content = {n: old.read(n) for n in old.namelist() if n != name}
    with zipfile.ZipFile(path, "w", method) as new:
        for n, value in {name: data, **content}.items():
            new.writestr(n, value)


def test_hostile_headers_of_arrays(tmp_path):
    path = tmp_path / "hostile.npz"
    zeros = b"\0" * 100_000_000
    for data, match in (
        (header(" " * 50_000_000, version=2), "header of 50,000,000 bytes"),
        (npy((1, 1, 192), "|V520000") + zeros, "of type"),
        (npy((1, 1, 192), "|V4") + b"\0" * 768, "of type"),
        (npy((1, 1, 192), "<c8") + b"\0" * 1536, "of type"),
        (npy((1, 1, -192)), "impossible shape"),
        (npy((2**70, 2)), "impossible shape"),
        (header("(" * 9000), "header"),
        (header("-" * 5000 + "1"), "header"),
        (header("{'descr': "), "header"),
        (header("{'descr': '<f4', 'fortran_order': 1, 'shape': 3}"), "header"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "magic"),
    ):
        zipped(path, [("cls.npy", data)], zipfile.ZIP_DEFLATED)
        tracemalloc.start()
        refused(path, match)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


def test_directories_that_make_much_of_little_are_refused(tmp_path):
    """One member named many times, shared bytes, and decompressors without a bound."""
    path = tmp_path / "m.npz"
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")):
        zipped(path, [("a.npy", ARRAY)], method)
        refused(path, f"is compressed by {name}, expected deflate or none")

    content = zipped(path, [("a.npy", ARRAY)])
    start, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    entry = bytes(content[start:end])

    def directory(*entries):
        size = sum(map(len, entries))
        record = struct.pack(
            "<4s4H2LH", b"PK\5\6", 0, 0, *[len(entries) % 2**16] * 2, size, start, 0
        )
        path.write_bytes(bytes(content[:start]) + b"".join(entries) + record)

    directory(entry, entry)
    refused(path, "two members are named 'a.npy'")
    directory(entry, entry.replace(b"a.npy", b"b.npy"))
    refused(path, "'b.npy' shares bytes with another")
    longer = bytearray(entry)
    longer[20:24] = struct.pack("<L", 10**6)  # the compressed size
    directory(bytes(longer))
    refused(path, "a member reaches into the directory")
    encrypted = bytearray(entry)
    encrypted[8] |= 1
    directory(bytes(encrypted))
    refused(path, "is encrypted")
    zipped(path, [(f"{i}.npy", ARRAY[:200]) for i in range(5001)])
    refused(path, "5,001 tensors, expected at most 5,000")
    directory(*[entry.replace(b"a.npy", b"%05d" % i) for i in range(90_000)])
    refused(path, "its directory has more than 4,194,304 bytes")


def test_damaged_members(tmp_path):
    path = tmp_path / "damaged.npz"
    content = zipped(path, [("a.npy", ARRAY)], zipfile.ZIP_DEFLATED)
    path.write_bytes(content[:60] + b"\xff" * 30 + content[90:])
    refused(path, "damaged")


def test_no_file_stays_open(zeros, tmp_path):
    """The file is closed when it is read and when it is refused."""
    write_npz(tmp_path / "a.npz", get_variant(VARIANT), zeros)
    (tmp_path / "a.pth").write_bytes(torch_bytes(timm(zeros)))
    zipped(tmp_path / "b.npz", [("a.npy", ARRAY)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for name in ("a.npz", "a.pth"):
            load_vit(VARIANT, tmp_path / name)
        refused(tmp_path / "b.npz", "not a ViT")
        gc.collect()
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert not [name for name in opened if str(tmp_path) in name]


def test_other_members_of_a_zip_are_left_alone(zeros, tmp_path):
    path = tmp_path / "readme.npz"
    with_member(path, zeros, b"hello", "README.txt")
    same(zeros, path)


def test_numbers_that_are_not_finite(base, tmp_path):
    path = tmp_path / "nan.safetensors"
    for value, dtype in ((np.nan, np.float32), (np.inf, np.float16), (1e300, np.float64)):
        tensors = timm(base)
        tensors["cls_token"] = np.full((1, 1, 192), value, dtype)
        save_file(tensors, path)
        refused(path, "'cls_token' has numbers that are not finite")


def test_a_huge_header_of_safetensors(tmp_path):
    path = tmp_path / "header.safetensors"
    path.write_bytes(struct.pack("<Q", 50_000_000) + b"{" + b" " * 50_000_000)
    refused(path, "a header of 50,000,000 bytes")


def test_zip_bombs_are_refused_without_being_read(zeros, tmp_path):
    """40 MB a member of zeros, a few KB compressed; nothing of that size may be allocated."""
    path = tmp_path / "bomb.npz"
    write_npz(path, get_variant(VARIANT), zeros)
    members = {
        "head/kernel.npy": npy((10_000_000,)) + b"\0" * 40_000_000,  # never needed, never read
        "cls.npy": npy((1, 1, 10_000_000)) + b"\0" * 40_000_000,  # another shape
    }
    longer = {"cls.npy": npy((1, 1, 192)) + b"\0" * 40_000_000}  # more than its header says
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    for wrong, match in ((members, r"expected \[1, 1, 192\]"), (longer, "not the size")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in {**content, **wrong}.items():
                new.writestr(name, data)
        tracemalloc.start()
        refused(path, match)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
    with zipfile.ZipFile(path, "w") as new:  # a header that claims more than there is
        for name, data in {**content, "cls.npy": npy((1, 1, 192))}.items():
            new.writestr(name, data)
    refused(path, "not the size")


def test_folders_without_one_clear_file(base, tmp_path):
    with pytest.raises(UserError, match="found: none"):
        load_vit(VARIANT, tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(timm(base), tmp_path / name)
    with pytest.raises(UserError, match="a.safetensors, b.safetensors"):
        load_vit(VARIANT, tmp_path)
