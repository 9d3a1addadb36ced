"""Model cards: a README.md with what a user of an exported model must know."""

import json
from typing import Any, NamedTuple

from fact_jax.text import printable_line

_ORDER = ("data", "protocol", "accuracy", "numbers", "bytes", "seed")


class Card(NamedTuple):
    """Facts for a model card.

    Attributes:
      name: of the task.
      method: in words, such as 'fact_tt, rank 16, scale 10'.
      labels: names of the classes, in their order.
      preprocessing: how a picture becomes the network's input, one sentence.
      base_model: a repository of the Hugging Face hub or a path; empty if it is not known.
      facts: further lines by their titles: data, protocol, accuracy, numbers, versions.
    """

    name: str
    method: str
    labels: tuple[str, ...]
    preprocessing: str
    base_model: str
    facts: dict[str, str]


def preprocessing_sentence(metadata: dict[str, Any], preprocessor: dict[str, Any]) -> str:
    """How a picture becomes the network's input."""
    side = preprocessor["size"]["height"]
    mean, std = (", ".join(f"{x:g}" for x in preprocessor[k]) for k in ("image_mean", "image_std"))
    quality = metadata.get("jpeg_quality")
    jpeg = f" It went through JPEG of quality {quality} before." if quality else ""
    crop = preprocessor.get("crop_size")
    middle = f"the middle {crop['height']} x {crop['width']} of them, " if crop else ""
    return (
        f"RGB, resized to {side} x {side} pixels (bicubic, aspect ratio not kept), {middle}"
        f"divided by 255, mean {mean}, standard deviation {std}.{jpeg}"
    )


def adapter_card(card: Card, rank: int, names: str, model_class: str) -> str:
    """The card of a PEFT adapter of this rank, with names of this library."""
    if model_class:
        start = f"""from peft import PeftModel
from transformers import {model_class}

model = {model_class}.from_pretrained(BASE, num_labels={len(card.labels)})
"""
    else:
        start = f"""import timm
from peft import PeftModel

model = timm.create_model(BASE, pretrained=True, num_classes={len(card.labels)})
"""
    use = start + 'model = PeftModel.from_pretrained(model, "THIS_FOLDER").eval()'
    about = (
        f"A LoRA adapter of rank {rank} for PEFT, with the names of layers of {names}. It was made "
        f"of {card.method} by fact-jax."
    )
    return _card(card, "peft", ["lora", "fact-jax"], about, use)


def factor_card(card: Card, variant: str, repo: str) -> str:
    """The card of a factor file in a repository of the hub."""
    use = f"""import fact_jax

task = fact_jax.load_factors("hf:{repo}")
model, base = fact_jax.load_vit("{variant}", **task.forward_settings)
logits = fact_jax.Predictor(model, base, task).logits(images)"""
    about = f"The factors of one task ({card.method}) for a frozen {variant}, made by fact-jax."
    return _card(card, "fact-jax", ["fact-jax", "factor-tuning"], about, use)


def model_card(card: Card, library: str, use: str) -> str:
    """The card of a whole model."""
    about = f"A Vision Transformer with {card.method}. It was written by fact-jax."
    return _card(card, library, ["fact-jax"], about, use)


def _card(card: Card, library: str, tags: list[str], about: str, use: str) -> str:
    head = {"library_name": library, "pipeline_tag": "image-classification", "tags": tags}
    if card.base_model:
        head["base_model"] = card.base_model
    # JSON is YAML, and quotes whatever the names hold.
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    rows = {
        "preprocessing": card.preprocessing,
        **{key: card.facts[key] for key in _ORDER if key in card.facts},
        **{key: value for key, value in card.facts.items() if key not in _ORDER},
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    return f"""---
{front}
---

# {_cell(card.name)}

{about}

```python
{use}
```

| | |
| --- | --- |
{table}

{_labels(card.labels)}"""


def _labels(labels: tuple[str, ...]) -> str:
    rows = "\n".join(f"| {i} | {_cell(label)} |" for i, label in enumerate(labels))
    return f"| class | label |\n| --: | --- |\n{rows}\n" if labels else ""


def _cell(text: str) -> str:
    """A text that stays within its cell of a Markdown table."""
    return printable_line(text).replace("|", "\\|").replace("<", "&lt;")
