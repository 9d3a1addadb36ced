"""Tasks of random factors for the server's trial, each in two versions, and their true answers."""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

import fact_jax
from fact_jax.backbone.config import ViTConfig
from fact_jax.files.factors import read_factors, to_bytes
from fact_jax.images.normalise import normalise
from fact_jax.images.pipeline import decode
from fact_jax.serving.predict import Predictor
from fact_jax.tuning.method import Method

METHODS: tuple[Method, ...] = (
    fact_jax.FacTTT(4, 1.0),
    fact_jax.FacTTK(4, 1.0),
    fact_jax.LoRA(2),
)
CLASSES = (2, 10, 37)
VERSIONS = ("first", "second")


class Truth(NamedTuple):
    """Answers that the server must give.

    Attributes:
      pictures: encoded, of several formats and sizes.
      images: the same for the network, [n, s, s, 3].
      logits: by task, of each version and picture, [2, n, classes].
    """

    pictures: list[bytes]
    images: np.ndarray
    logits: dict[str, np.ndarray]


def pictures(count: int) -> list[bytes]:
    """Encoded pictures of noise with blocks of colour."""
    rng, encoded = np.random.default_rng(0), []
    for i in range(count):
        height, width = rng.integers(40, 400, 2)
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(blocks).resize((int(width), int(height)))
        out = io.BytesIO()
        image.save(out, ("JPEG", "PNG", "WEBP")[i % 3])
        encoded.append(out.getvalue())
    return encoded


def factor_file(config: ViTConfig, number: int, version: int, side: int) -> bytes:
    """A factor file of random numbers."""
    method, classes = METHODS[number % len(METHODS)], CLASSES[number % len(CLASSES)]
    rng = np.random.default_rng([number, version])
    factors: Any = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype("float32"),
        method.init(jax.random.key(0), config),
    )
    head = {
        "kernel": rng.normal(0, 0.3, (config.width, classes)).astype("float32"),
        "bias": rng.normal(0, 0.3, classes).astype("float32"),
    }
    metadata = {"variant": "vit_mini", "image_size": side, "normalisation": "inception"}
    return to_bytes(method, {"factors": factors, "head": head}, config, metadata)


def write_tasks(folder: Path, count: int, num_pictures: int = 6) -> Truth:
    """Writes DIR/tasks/*.safetensors and both versions of each, and computes the answers."""
    model, base = fact_jax.load_vit("vit_mini")
    side = model.config.image_size
    encoded = pictures(num_pictures)
    stacked = np.stack([decode(p, side) for p in encoded])
    images = np.asarray(normalise(stacked, "inception"))
    for name in ("tasks", *VERSIONS):
        (folder / name).mkdir()
    logits = {}
    for number in range(count):
        name = f"task{number:03}"
        rows = []
        for version, kind in enumerate(VERSIONS):
            path = folder / kind / f"{name}.safetensors"
            path.write_bytes(factor_file(model.config, number, version, side))
            rows.append(Predictor(model, base, read_factors(path), 8).logits(images))
        logits[name] = np.stack(rows)
        put_version(folder, name, 0)
    (folder / "secret.safetensors").write_bytes(factor_file(model.config, 0, 9, side))
    (folder / "tasks" / "link.safetensors").symlink_to(folder / "secret.safetensors")
    return Truth(encoded, images, logits)


def put_version(folder: Path, name: str, version: int) -> None:
    """Replaces a task's file in the served folder at one moment."""
    content = (folder / VERSIONS[version] / f"{name}.safetensors").read_bytes()
    new = folder / f"{name}.new"
    new.write_bytes(content)
    os.replace(new, folder / "tasks" / f"{name}.safetensors")
