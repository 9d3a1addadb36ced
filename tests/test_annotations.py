"""Annotations are true: the strict rooms run with every call checked, shapes included.

In processes of their own, because jaxtyping checks what is imported after it. Only here: JAX
rebuilds an `Adaptation` around values that are no arrays (None, what `lower` describes), which the
check of a dataclass refuses, and the bounds on hostile files leave no time for it.
"""

import subprocess
import sys

import pytest
from devices import on_host_devices
from places import ROOT

ROOMS = ("backbone", "tuning", "images", "files")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
# Tests of the data room that call most of it: all kinds of files, and two tasks of TFDS.
DATA = ("data_stored", "data_tasks")
CHOSEN = "stored or older_version or (features and (kitti or smallnorb_ele))"
SCRIPT = """
import sys, tempfile
from pathlib import Path
from jaxtyping import install_import_hook

install_import_hook([f"fact_jax.{room}" for room in sys.argv[2:]], sys.argv[1])
import jax
import numpy as np
from tried_methods import ALL

import fact_jax
from fact_jax.backbone.adaptation import LowRank
from fact_jax.backbone.merging import absorb
from fact_jax.backbone.vit import init_base
from fact_jax.files import torch_zip, weights
from fact_jax.files.tensors import open_tensors
from fact_jax.images.normalise import normalise

config = fact_jax.ViTConfig(
    width=24, depth=3, num_heads=3, mlp_dim=96, patch_size=4, image_size=16
)
base, model, key = init_base(config, jax.random.key(0)), fact_jax.ViT(config), jax.random.key(1)
images = normalise(np.zeros((2, 16, 16, 3), np.uint8), "imagenet")
for name, method in ALL.items():
    factors = method.init(key, config, base)
    merged, rest = absorb(base, method.adaptation(factors, config, 0.5))
for method in (fact_jax.FacTTT(rank=4), fact_jax.FacTTK(rank=4)):
    factors = method.init(key, config)
    for kind in (np.asarray(images), images):
        fact_jax.features(
            model, base, kind, method.adaptation(factors, config), key=key, dropout_rate=0.1
        )
    jax.grad(
        lambda f: fact_jax.features(model, base, images, method.adaptation(f, config)).sum()
    )(factors)
folder = Path(tempfile.mkdtemp())
head = {"kernel": np.zeros((24, 2), "float32"), "bias": np.zeros(2, "float32")}
fact_jax.save_factors(folder / "a.safetensors", method, factors, head, config)
fact_jax.load_factors(folder / "a.safetensors")
weights.write_npz(folder / "a.npz", config, base)
(folder / "a.pt").write_bytes(torch_zip.torch_bytes(head))
for file in (open_tensors(folder / name) for name in ("a.safetensors", "a.npz", "a.pt")):
    for name in file.shapes:
        file.read(name)
    file.close()
try:
    LowRank(np.zeros((3, 24)), np.zeros((4, 24)))
except TypeError:
    print("checked")
"""


def test_the_core_rooms_keep_their_annotations():
    pytest.importorskip("beartype")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, CHECKER, *ROOMS],
        env=on_host_devices(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "checked\n"


def test_the_data_room_keeps_its_annotations():
    pytest.importorskip("beartype")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"),
            f"--jaxtyping-packages=fact_jax.data,{CHECKER}",
            f"-k={CHOSEN}",
            *(str(ROOT / "tests" / "data" / f"test_{name}.py") for name in DATA),
        ],
        env=on_host_devices(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
