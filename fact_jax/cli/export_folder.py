"""`export --format`: a task, or weights alone, as a folder that other libraries open."""

from pathlib import Path

from absl import flags

from fact_jax.backbone.config import get_variant
from fact_jax.cli import arguments
from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask
from fact_jax.files.peft_writing import NAMES, adapter_files
from fact_jax.files.weights import load_vit
from fact_jax.serving.folders import WRITERS, card_of, merged_base, merged_files
from fact_jax.sweep.result import Result

FORMATS = ("peft", *WRITERS)


def define_flags() -> None:
    """Defines --format and its options."""
    flags.DEFINE_enum("format", None, FORMATS, "Write a new folder in this format.")
    flags.DEFINE_enum("names", NAMES[0], NAMES, "With --format peft: whose names of layers.")
    flags.DEFINE_string(
        "base_model", "", "The base's name on the hub, for the card. Default: that of --weights."
    )


def files(task: TrainedTask | None, options: flags.FlagValues) -> dict[str, bytes]:
    """The files of the folder that --format asks for, by their names."""
    variant = arguments.variant_of(task, options.variant)
    facts = {} if task is None else _measured(task.path)
    base_model = _base_model(task, options)
    if options.format == "peft":
        if task is None:
            raise UserError("An adapter needs a task: give --factors.")
        config = get_variant(variant).replace(**task.forward_settings)
        return adapter_files(task, config, card_of(task, config, base_model, facts), options.names)
    forward = task.forward_settings if task else {}
    model, base = load_vit(variant, options.weights, **forward)
    merged = merged_base(model.config, base, task, options.any_weights)
    card = card_of(task, model.config, base_model, facts)
    metadata = task.metadata if task else {}
    return merged_files(options.format, model.config, merged, metadata, card)


def _base_model(task: TrainedTask | None, options: flags.FlagValues) -> str:
    """What the card calls the base model; empty if nothing names it."""
    weights = (options.weights or "").removeprefix("hf:").partition("@")[0]
    named = weights if (options.weights or "").startswith("hf:") else ""
    stated = task.metadata.get("base_model") if task else None
    return options.base_model or named or str(stated or "")


def _measured(path: Path) -> dict[str, str]:
    """The accuracy of a factor file that lies in a work directory, as its result says it."""
    file = path.parent.parent / "results" / f"{path.stem}.json"
    if path.parent.name != "factors" or not file.is_file():
        return {"accuracy": "not stated"}
    try:
        result = Result.from_json(file)
    except (UserError, ValueError, OSError):
        return {"accuracy": "not stated"}
    return {
        "accuracy": f"{result.accuracy:.2f} % of {result.num_test:,} test images",
        "protocol": f"{result.protocol}, seed {result.seed}, {result.num_train:,} training images",
    }
