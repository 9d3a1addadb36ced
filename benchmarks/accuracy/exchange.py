"""How close exported tasks are to ours: logits in peft, transformers, timm, jax.export and ONNX.

    python -m benchmarks.exchange --out benchmarks/results/exchange.json

ViT-B/16 and FacT-TT of rank 16 with random numbers, as large as those of trained ones are in their
effect. Needs PyTorch, transformers, peft and timm (`make parity` installs them); ONNX Runtime and
jax2onnx, if they are there (docs/exchange.md), add two rows. What is missing is left out, and the
record names it.
"""

import importlib.metadata
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import option_parser, store
from benchmarks.network import random_images
from fact_jax import FacTTT, Predictor, ViT, ViTConfig, get_variant, load_factors, normalise
from fact_jax.backbone.vit import init_base
from fact_jax.cli.export_folder import PROGRAMS
from fact_jax.files.factors import TrainedTask, to_bytes
from fact_jax.files.folder import write_folder
from fact_jax.files.peft_writing import adapter_files
from fact_jax.serving.folders import WRITERS, card_of, merged_base
from fact_jax.serving.programs import Program
from fact_jax.sweep.versions import environment

RANK, CLASSES, IMAGES = 16, 10, 3
PACKAGES = ("peft", "transformers", "timm", "onnxruntime", "jax2onnx", "torch")


class Exported:
    """A task in a folder of its own for each format, and its logits by other libraries."""

    def __init__(self, config: ViTConfig, root: Path):
        self.config, self.root = config, root
        rng = np.random.default_rng(0)

        def noisy(x: jax.Array) -> np.ndarray:
            return np.asarray(x + 0.02 * rng.normal(size=x.shape), np.float32)

        self.base = jax.tree.map(noisy, init_base(config, jax.random.key(0)))
        method = FacTTT(RANK, 1.0)
        factors = method.init(jax.random.key(1), config)
        factors = {k: np.asarray(0.1 * rng.normal(size=v.shape), "f4") for k, v in factors.items()}
        head = {
            "kernel": np.asarray(rng.normal(size=(config.width, CLASSES)), np.float32),
            "bias": np.zeros(CLASSES, np.float32),
        }
        path = root / "task.safetensors"
        path.write_bytes(to_bytes(method, {"factors": factors, "head": head}, config, {}))
        self.task = load_factors(path)
        self.card = card_of(self.task, config, "", {})
        self.images = np.asarray(normalise(random_images(IMAGES, config.image_size), "imagenet"))

    def ours(self, task: TrainedTask | None = None) -> np.ndarray:
        """Logits of the images by `Predictor`."""
        return Predictor(ViT(self.config), self.base, task or self.task).logits(self.images)

    def _written(self, name: str, files: dict[str, bytes]) -> str:
        write_folder(self.root / name, files)
        return str(self.root / name)

    def _merged(self, to: str, task: TrainedTask | None) -> str:
        base = merged_base(self.config, self.base, task)
        if task is None:  # a head that the adapter replaces
            base = {**base, "head": jax.tree.map(np.zeros_like, self.task.head)}
        files = WRITERS[to](self.config, base, {}, self.card)
        return self._written(f"{to}-{'base' if task is None else 'task'}", files)

    def _torch(self, model: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            out = model.eval()(torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy()))
        return np.asarray(getattr(out, "logits", out))

    def peft(self) -> np.ndarray:
        import peft
        import transformers

        kind = transformers.ViTForImageClassification
        model = kind.from_pretrained(self._merged("hf", None), num_labels=CLASSES)
        files = adapter_files(self.task, self.config, self.card, "transformers5")
        return self._torch(peft.PeftModel.from_pretrained(model, self._written("adapter", files)))

    def hf(self) -> np.ndarray:
        import transformers

        kind = transformers.ViTForImageClassification
        return self._torch(kind.from_pretrained(self._merged("hf", self.task)))

    def timm(self) -> np.ndarray:
        import timm

        folder = self._merged("timm", self.task)
        return self._torch(timm.create_model(f"local-dir:{folder}", pretrained=True))

    def _program(self, to: str) -> Path:
        program = Program(self.config, self.base, self.task, self.card)
        return Path(self._written(to, PROGRAMS[to](program)))

    def stablehlo(self) -> np.ndarray:
        from jax import export

        content = (self._program("stablehlo") / "model.stablehlo").read_bytes()
        return np.asarray(export.deserialize(bytearray(content)).call(self.images))

    def onnx(self) -> np.ndarray:
        import onnxruntime

        model = onnxruntime.InferenceSession(str(self._program("onnx") / "model.onnx"))
        return model.run(None, {"images": self.images})[0]

    def onnx_factors(self) -> np.ndarray:
        import onnxruntime

        folder = self._program("onnx_factors")
        model = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        tree = {"factors": self.task.factors, "head": self.task.head}
        named = {f"{part}/{k}": np.asarray(v) for part, x in tree.items() for k, v in x.items()}
        scale = np.array(self.task.method.scale, np.float32)
        return model.run(None, {"images": self.images, "scale": scale, **named})[0]


# The formats, and the packages that open them.
FORMATS: dict[str, tuple[Callable[[Exported], np.ndarray], tuple[str, ...]]] = {
    "peft": (Exported.peft, ("peft", "transformers")),
    "hf": (Exported.hf, ("transformers",)),
    "timm": (Exported.timm, ("timm",)),
    "stablehlo": (Exported.stablehlo, ("flatbuffers",)),
    "onnx": (Exported.onnx, ("jax2onnx", "onnxruntime")),
    "onnx_factors": (Exported.onnx_factors, ("jax2onnx", "onnxruntime")),
}


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size")
    args = parser.parse_args()
    config = get_variant(args.variant)
    config = config.replace(image_size=args.image_size or config.image_size, precision="highest")
    if find_spec("torch") is not None:
        from benchmarks.speed.torch_peers import prepare_torchvision

        prepare_torchvision()
    rows, absent = [], {}
    with tempfile.TemporaryDirectory() as root:
        exported = Exported(config, Path(root))
        ours = exported.ours()
        zero = exported.task._replace(factors=jax.tree.map(np.zeros_like, exported.task.factors))
        largest = np.abs(ours).max()
        moved = float(np.abs(ours - exported.ours(zero)).max() / largest)
        print(f"the increments move the logits by {moved:.2f} of the largest")
        for name, (logits, packages) in FORMATS.items():
            if missing := [package for package in packages if find_spec(package) is None]:
                absent[name] = missing
                continue
            error = float(np.abs(logits(exported) - ours).max() / largest)
            rows.append({"format": name, "opened_by": list(packages), "difference": error})
            print(f"{name:14}{error:.1e}")
    there = [name for name in PACKAGES if find_spec(name) is not None]
    versions = {name: importlib.metadata.version(name) for name in there}
    result = {"moved": moved, "rows": rows, "left_out": absent}
    store(args, {**result, "versions": versions, "environment": environment()})


if __name__ == "__main__":
    main()
