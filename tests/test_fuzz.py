"""The fuzzer makes a case again from its seed, and tells a violation from a refusal."""

import json
import random

import pytest

from benchmarks.robustness import fuzz, fuzz_mutate
from benchmarks.robustness.fuzz_target import Target
from fact_jax import UserError


@pytest.mark.filterwarnings("ignore:some pictures have more than 8 bits")
@pytest.mark.parametrize("name", ["npz", "safetensors", "torch", "results", "pictures", "cache"])
def test_sound_files_are_accepted_and_cases_are_made_again(tmp_path, name):
    target = fuzz.TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        path = tmp_path / f"a{target.suffix}"
        path.write_bytes(data)
        assert fuzz.attempt(target, path)["outcome"] == "accepted"
    cases = [fuzz.make(target, seeds, name, 0, case) for case in range(20)]
    assert cases == [fuzz.make(target, seeds, name, 0, case) for case in range(20)]
    assert len({*cases, *seeds}) > 15


def test_what_is_a_violation(tmp_path):
    def outcome(load):
        target = Target(".x", list, lambda rng, data: data, load)
        return fuzz.is_violation(fuzz.attempt(target, tmp_path / "a.x"))

    def refuse(path):
        raise UserError(f"{path} is damaged.")

    assert not outcome(lambda path: None)
    assert not outcome(refuse)
    assert outcome(lambda path: {}["key"])
    assert fuzz.is_violation({"outcome": "accepted", "seconds": 3.0, "bytes": 0})
    assert fuzz.is_violation({"outcome": "accepted", "seconds": 0.0, "bytes": 600 << 20})


def test_mutated_json_stays_json():
    value = {"a": [1, 2, {"b": "x"}], "c": 0.5}
    texts = {json.dumps(fuzz_mutate.json_value(random.Random(i), value)) for i in range(50)}
    assert len(texts) > 40
