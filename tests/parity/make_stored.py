"""Writes tests/stored/outputs.npz: what PyTorch, timm and transformers give for stored/cases.py.

``make stored-parity`` runs it; `make test` compares fact-jax with the file, without PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch_backbones
import torch_fact
import torch_models
from stored.cases import OUTPUTS, STORED, Case, KindCase, TrainCase, VitCase, digest

_MODELS = {
    "vit_timm": torch_models.timm_vit,
    "vit_hugging_face": torch_models.hugging_face_vit,
    "dinov2": torch_models.dinov2,
    "dinov2_interpolated": torch_models.dinov2,
}


def theirs(name: str, case: Case, inputs: dict) -> dict[str, np.ndarray]:
    """PyTorch's outputs for a case of cases.STORED, in the form of ``case.ours``."""
    if isinstance(case, VitCase):
        model = _MODELS[name](case.config, inputs["base"], inputs["head"])
        return torch_models.vit_outputs(model, inputs["head"], inputs["images"])
    if isinstance(case, KindCase):
        model = torch_backbones.hugging_face(case.config, inputs["base"])
        return torch_backbones.outputs(model, inputs["images"])
    if isinstance(case, TrainCase):
        return torch_fact.train(case, **inputs)
    return torch_fact.fact_outputs(case.method, case.config, **inputs)


def arrays() -> Iterator[tuple[str, np.ndarray]]:
    """The file's arrays: ``case/output``, the inputs' digest, and the order of the examples."""
    for name, case in STORED.items():
        inputs = case.inputs()
        yield f"{name}/inputs", np.array(digest(inputs))
        if isinstance(case, TrainCase):
            yield f"{name}/order", case.order().astype(np.uint8)
        for output, value in theirs(name, case, inputs).items():
            yield f"{name}/{output}", value


if __name__ == "__main__":
    np.savez_compressed(OUTPUTS, allow_pickle=False, **dict(arrays()))
    print(f"{OUTPUTS}: {OUTPUTS.stat().st_size:,} bytes")
