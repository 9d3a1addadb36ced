"""Plans are those of the version that wrote tests/stored/plans.json (commit 8fa6322).

A stored result is taken again only if its `settings` are equal, and checkpoints lie in folders
named after them: a plan that changes trains begun work directories anew.
The file is ``{name: record(config_of(name)) for name in STORED}``.
"""

import hashlib
import importlib
import json

import pytest
from ml_collections import ConfigDict
from places import ROOT

from fact_jax.sweep.plan import make_plan

STORED = json.loads((ROOT / "tests" / "stored" / "plans.json").read_text())


def config_of(name):
    """The config of this name; 'overrides' and 'combination' are changes of compare.py's."""
    module, *argument = name.split(":")
    if module not in ("overrides", "combination"):
        return importlib.import_module(f"configs.{module}").get_config(*argument)
    config = importlib.import_module("configs.compare").get_config()
    config.update(tasks="digits,fashion", epochs=5, image_size=16, augment=False, train_limit=9)
    if module == "combination":
        config.methods = "fact_tt+vpt_deep"
        config["fact_tt+vpt_deep"] = ConfigDict({"scales": (0.5, 1), "optimizer": "sgd"})
        return config
    config.methods, config.warmup_epochs = "fact_tt,noah,lora", 1
    config.fact_tt.update({"epochs": 7, "dropout_rate": 0.0, "scale": 3.0})
    config.lora.per_task = ConfigDict({"fashion": {"rank": 2, "weight_decays": (0.0, 1e-4)}})
    return config


def record(config):
    """Digests of the config, as DIR/config.json has it, and of the plan; its first cell in full."""
    content = json.dumps(config.to_dict(), sort_keys=True)
    texts = [
        json.dumps(
            [c.name, c.task, repr(c.method), c.seed, [n.given for n in c.candidates], c.as_stored]
        )
        for c in (make_plan(config) if config.methods else ())
    ]
    return {
        "config": hashlib.sha256(content.encode()).hexdigest(),
        "cells": len(texts),
        "plan": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "first": json.loads(texts[0]) if texts else config.to_dict(),
    }


@pytest.mark.parametrize("name", STORED)
def test_a_plan_is_the_stored_one(name):
    now = json.loads(json.dumps(record(config_of(name))))
    assert json.dumps(now["first"]) == json.dumps(STORED[name]["first"])  # the order, too
    assert now == STORED[name]
