"""fact-jax against outputs of PyTorch, timm and transformers that were stored (tests/stored).

`make parity` makes the same comparisons, and more, with PyTorch itself.
"""

import jax
import numpy as np
import pytest
from stored.cases import OUTPUTS, STORED, TrainCase, digest, relative_errors

# Largest allowed max|a - b| / max|b| in float32; measured: 8e-7, 1e-6 and 3e-6 on a CPU.
BOUNDS = {"VitCase": 5e-6, "KindCase": 5e-6, "FactCase": 1e-5, "TrainCase": 5e-5}


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(OUTPUTS, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", STORED)
def test_outputs_equal_the_stored_ones_of_pytorch(name, stored, record_property):
    case = STORED[name]
    outputs = {k.partition("/")[2]: v for k, v in stored.items() if k.startswith(f"{name}/")}
    inputs = case.inputs()
    assert digest(inputs) == outputs.pop("inputs"), "inputs changed: run `make stored-parity`"
    if isinstance(case, TrainCase):
        same = np.array_equal(case.order(), outputs.pop("order"))
        assert same, f"jax {jax.__version__} shuffles otherwise: run `make stored-parity`"
    errors = relative_errors(case.ours(**inputs), outputs)
    for output, error in errors.items():
        record_property(output, error)
    assert max(errors.values()) <= BOUNDS[type(case).__name__], errors
