"""Targets of the fuzzer: weight files and factor files in every format that is read."""

import contextlib
import functools
import io
import json
import math
import random
import tempfile
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save

from benchmarks.robustness import fuzz_mutate
from benchmarks.robustness.fuzz_target import Target
from fact_jax import FacTTK, FacTTT, LoRA, ViTConfig, check_fits, load_factors, load_pack, load_vit
from fact_jax.algebra.quantise import Bits
from fact_jax.files.card import Card
from fact_jax.files.dictionary import Dictionary, read_dictionary
from fact_jax.files.download import BUNDLED
from fact_jax.files.factors import TrainedTask, to_bytes
from fact_jax.files.pack import pack_files
from fact_jax.files.peft_writing import adapter_files
from fact_jax.files.reference import reference_tensors
from fact_jax.files.tensors import open_tensors
from fact_jax.files.torch_zip import torch_bytes

_CONFIG = ViTConfig(width=16, depth=2, num_heads=2, mlp_dim=64, patch_size=4, image_size=16)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "fact_jax.json")
_LARGEST = 1_000_000  # numbers of an array: a model reads only those that have its shapes


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"cls": (1, 1, 4), "embedding/kernel": (4, 4, 3, 8), "embedding/bias": (8,), "s": ()}
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def _npz() -> list[bytes]:
    files = []
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **_arrays())
        files.append(buffer.getvalue())
    return files


def _safetensors() -> list[bytes]:
    return [save(_arrays(), metadata={"format": "pt"})]


def _torch() -> list[bytes]:
    arrays = {f"model.{name}": array for name, array in _arrays().items()}
    return [torch_bytes(arrays), torch_bytes({"a": np.arange(6, dtype="float16").reshape(2, 3)})]


def _trainable(method) -> dict:
    head = {"kernel": np.ones((_CONFIG.width, 3), "float32"), "bias": np.zeros(3, "float32")}
    return {"factors": method.init(jax.random.key(0), _CONFIG), "head": head}


def _factors() -> list[bytes]:
    metadata = {
        "variant": "vit_b16",
        "weights_sha256": "0" * 64,
        "task": "dtd",
        "class_names": list("abc"),
        "image_size": 224,
        "normalisation": "imagenet",
        "jpeg_quality": None,
        "protocol": "val",
    }
    methods = (FacTTT(2, 0.1), FacTTK(2, 1.0), LoRA(2, 1.0))
    files = [to_bytes(method, _trainable(method), _CONFIG, metadata) for method in methods]
    packed = to_bytes(methods[0], _trainable(methods[0]), _CONFIG, metadata, Bits(4, 1))
    return [*files, packed]


def _dictionary() -> Dictionary:
    method, metadata = FacTTK(2, 1.0), {"variant": "vit_b16", "weights_sha256": "0" * 64}
    return Dictionary.of(method, _trainable(method)["factors"], _CONFIG, metadata)


def _dictionaries() -> list[bytes]:
    return [_dictionary().content]


def _packs() -> list[bytes]:
    """A pack of a task with a dictionary, a small file, and a plain one."""
    dictionary, method = _dictionary(), FacTTK(2, 1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / dictionary.file_name).write_bytes(dictionary.content)
        shared = to_bytes(method, _trainable(method), _CONFIG, {}, Bits(4, 1), dictionary)
        (folder / "shared.safetensors").write_bytes(shared)
        for i, content in enumerate(_factors()[2:]):
            (folder / f"{i}.safetensors").write_bytes(content)
        return [pack_files(sorted(folder.glob("*.safetensors")))]


def _released() -> list[bytes]:
    files = []
    for method in (FacTTT(2, 0.1), FacTTK(2, 1.0)):
        tree = _trainable(method)
        files.append(torch_bytes(reference_tensors(method, tree["factors"], tree["head"])))
    return files


def _weights() -> list[bytes]:
    return [BUNDLED["vit_mini"].read_bytes()]


def _adapters() -> list[bytes]:
    """Adapters of PEFT: the bytes of their two files one after the other, with their lengths."""
    seeds = []
    for names in ("transformers5", "transformers4", "timm"):
        tree, method = _trainable(FacTTT(2, 0.1)), FacTTT(2, 0.1)
        metadata = {"vit": _CONFIG.stated(), "class_names": list("abc"), "image_size": 16}
        task = TrainedTask(method, tree["factors"], tree["head"], metadata, Path("t.safetensors"))
        card = Card("t", "m", tuple("abc"), "p", "google/vit-base-patch16-224", {})
        files = adapter_files(task, _CONFIG, card, names)
        seeds.append(_joined([files[name] for name in _ADAPTER]))
    return seeds


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _parts(data: bytes) -> list[bytes]:
    parts = []
    while data:
        end = 8 + int.from_bytes(data[:8], "little")
        parts.append(data[8:end])
        data = data[end:]
    return parts


def _mutate_adapter(rng: random.Random, data: bytes) -> bytes:
    parts = _parts(data)
    i = rng.randrange(len(parts))
    change = _mutate_safetensors if i == 1 else fuzz_mutate.json_bytes
    parts[i] = change(rng, parts[i])
    return _joined(parts)


def _read_adapter(path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in zip(_ADAPTER, _parts(path.read_bytes()), strict=True):
            (folder / file).write_bytes(content)
        _read_factors(folder)


def _mutate_npz(rng: random.Random, data: bytes) -> bytes:
    return fuzz_mutate.zip_bytes(rng, data, lambda r, _, content: fuzz_mutate.npy_bytes(r, content))


def _mutate_torch(rng: random.Random, data: bytes) -> bytes:
    def member(rng: random.Random, name: str, content: bytes) -> bytes:
        change = fuzz_mutate.pickle_bytes if name.endswith(".pkl") else fuzz_mutate.some_bytes
        return change(rng, content)

    return fuzz_mutate.zip_bytes(rng, data, member)


def _mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Other bytes, another header, or other metadata, which are JSON in JSON."""
    if rng.random() < 0.25:
        return fuzz_mutate.some_bytes(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    texts = header.get("__metadata__", {})
    if len(texts) > 1 and rng.random() < 0.7:
        for key in rng.sample(list(texts), rng.randint(1, 2)):
            text = fuzz_mutate.json_bytes(rng, texts[key].encode())
            texts[key] = text.decode("utf-8", "replace")
    else:
        header = fuzz_mutate.json_value(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data[end:]


def _read_tensors(path: Path) -> None:
    with contextlib.closing(open_tensors(path)) as file:
        for name, shape in file.shapes.items():
            if math.prod(shape) <= _LARGEST and file.read(name).shape != shape:
                raise AssertionError(f"{name} has another shape than {shape}")


def _read_factors(path: Path) -> None:
    task = load_factors(path, scale=1.0 if path.suffix == ".pt" else None)
    width, classes = task.head["kernel"].shape
    if not 0 < task.num_classes == classes or width != task.metadata["vit"]["width"]:
        raise AssertionError("the head does not fit")
    heads = {"num_heads": 2, "patch_size": 4}  # which released files do not say
    config = ViTConfig(**{**heads, **task.metadata["vit"]})
    check_fits(task, config, task.metadata.get("weights_sha256"))
    jax.eval_shape(lambda factors: task.method.adaptation(factors, config), task.factors)


def _read_dictionary(path: Path) -> None:
    dictionary = read_dictionary(path)
    if dictionary.factors.keys() != set(dictionary.method.shared):
        raise AssertionError("factors are missing")


def _read_pack(path: Path) -> None:
    for task in load_pack(path).values():
        config = ViTConfig(**task.metadata["vit"])
        adaptation = functools.partial(task.method.adaptation, config=config)
        jax.eval_shape(adaptation, task.factors)


def _read_weights(path: Path) -> None:
    load_vit("vit_mini", path)


TARGETS: dict[str, Target] = {
    "npz": Target(".npz", _npz, _mutate_npz, _read_tensors),
    "safetensors": Target(".safetensors", _safetensors, _mutate_safetensors, _read_tensors),
    "torch": Target(".pt", _torch, _mutate_torch, _read_tensors),
    "factors": Target(".safetensors", _factors, _mutate_safetensors, _read_factors),
    "factors_torch": Target(".pt", _released, _mutate_torch, _read_factors),
    "dictionary": Target(".dictionary", _dictionaries, _mutate_safetensors, _read_dictionary),
    "adapter": Target(".adapter", _adapters, _mutate_adapter, _read_adapter),
    "pack": Target(".pack", _packs, _mutate_safetensors, _read_pack),
    "weights": Target(".npz", _weights, _mutate_npz, _read_weights, share=0.1),
}
