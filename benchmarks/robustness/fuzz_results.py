"""Target of the fuzzer: the JSON of a finished cell, through the sweep's reader and the report."""

import copy
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.made_up import result
from benchmarks.robustness import fuzz_mutate
from benchmarks.robustness.fuzz_target import Target
from fact_jax import UserError
from fact_jax.report.blocks import Block, Choice, Details, Figure
from fact_jax.report.page import report_blocks
from fact_jax.report.records import csv_text
from fact_jax.report.study import Study, read_study
from fact_jax.report.writers import markdown, page
from fact_jax.sweep.store import Store

_CELL = "digits-noah-seed0"
_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 5, 30_000_000, 2**53, 2**63, -(10**18), 10**25, 0.5, -0.0),
    *(1e-300, 1e29, 1e300, math.nan, math.inf, -math.inf, "", "0", "a", "](x.jpg)", "<script>"),
    *("../../x", "\x1b[2J", "\u202e", "$x^", "_a", "|`*\n\\", "\x00", "\ud800", "x" * 5000, "=1+1"),
    *([], [[]], {}, {"a": []}, [0], [None], [[0, 0, 1]], [[30_000_000, 1, 1]], [[-1, 0, 1]]),
    *(["a", "b"], [1e29] * 3, [math.nan], {"scale=nan": 1.0}, {"scale=1e999, x=": 5}, {"": 0}),
)


def _seeds() -> list[bytes]:
    """A result with everything that this version stores."""
    search = {
        "families": ["prompts", "lora", "adapters"],
        "best": [[1, 0], [2, 4], [0, 3]],
        "fitness": 70.0,
        "parameters": 10,
        "history": [{"best": 70.0, "tried": 5}],
    }
    made = result(
        *("digits", "noah", 0, 80.0),
        variant="vit_mini",
        selection={"scale=0.1": 70.0, "scale=1": 71.0, "scale=10": None},
        grid_size=3,
        search=search,
        test_accuracies=[70.0, None, 80.0],
        stack={"runs": 1},
        settings={"rank": 4, "image_size": 32},
        data={"note": "n"},
        weights="w",
        class_names=["a", "b", "c"],
        per_class_accuracy=[90.0, 70.0, None],
        confusion=[[0, 0, 9], [0, 1, 1], [1, 1, 7], [1, 2, 3]],
        examples={"file": "examples/x.jpg", "size": 8, "true": [0], "predicted": [1]},
    )
    return [json.dumps(made).encode()]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Container and key of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    places = []
    for key, item in items:
        places.append((value, key))
        if isinstance(item, dict | list):
            places += _places(item)
    return places


def _mutate(rng: random.Random, data: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.02:
        return b"[" * rng.randrange(200_000)
    if kind < 0.3:
        return (
            fuzz_mutate.json_bytes(rng, data) if kind < 0.2 else fuzz_mutate.some_bytes(rng, data)
        )
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(_places(content) or [(content, "cell")])
        what = rng.random()
        if what < 0.15:
            del container[key]
        elif what < 0.3 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif what < 0.4:
            container[key] = [container[key]]
        else:  # mostly of the same type, which no check of types refuses
            kind = type(container[key])
            same = [v for v in _HOSTILE if type(v) is kind and rng.random() < 0.9]
            container[key] = copy.deepcopy(rng.choice(same or _HOSTILE))
    return json.dumps(content).encode()


def _report(study: Study) -> None:
    """Everything that a report writes, its figures laid out but not drawn."""
    blocks = report_blocks(study)
    csv_text(list(study.results)).encode(errors="backslashreplace")
    markdown(blocks).encode()
    page("title", _without_figures(blocks)).encode()


def _without_figures(blocks: Sequence[Block]) -> list[Block]:
    others: list[Block] = []
    for block in blocks:
        if isinstance(block, Figure):
            block.figure.draw_without_rendering()
        elif isinstance(block, Details):
            others.append(Details(block.title, _without_figures(block.blocks)))
        elif isinstance(block, Choice):
            others.append(Choice([(name, _without_figures(held)) for name, held in block.options]))
        else:
            others.append(block)
    return others


def _load(path: Path) -> None:
    """Reads the file as a sweep and as a report does; a second, sound result stands beside it."""
    folder = path.parent / "work"
    store = Store(folder, note=lambda text: None)
    other = {"cell": "digits-lora-seed0", "method": "lora", "accuracy": 70.0, "num_factors": 9}
    other |= {"task": "digits", "seed": 0}
    store.write_json(store.result_path("digits-lora-seed0"), other)
    store.result_path(_CELL).write_bytes(path.read_bytes())
    study = read_study(folder)
    if len(study.results) + len(study.refused) != 2:
        raise AssertionError("the sound result was left out")
    if not study.refused:
        _report(study)
    record = store.read_record(_CELL, complete=True)
    for aside in (folder / "results").glob("*.unreadable-*"):
        aside.unlink()
    if study.refused or record is None:
        raise UserError(study.refused[0] if study.refused else "incomplete")


TARGETS = {"results": Target(".json", _seeds, _mutate, _load, share=0.3)}
