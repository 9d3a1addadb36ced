"""tests/stored/outputs.npz is what tests/parity/make_stored.py writes: it cannot go stale."""

import make_stored
import numpy as np
from stored.cases import OUTPUTS

LIMIT = 300_000  # bytes


def test_stored_outputs_are_reproduced(compare):
    fresh = dict(make_stored.arrays())
    with np.load(OUTPUTS, allow_pickle=False) as file:
        stored = dict(file)
    assert stored.keys() == fresh.keys()
    exact = [name for name in fresh if name.endswith(("/inputs", "/order"))]
    for name in exact:
        np.testing.assert_array_equal(stored[name], fresh[name], err_msg=name)
    outputs = [name for name in fresh if name not in exact]
    compare({n: fresh[n] for n in outputs}, {n: stored[n] for n in outputs}, 2e-5)
    assert OUTPUTS.stat().st_size < LIMIT
