"""`export --format`: a task, or weights alone, as a folder that other libraries open."""

from pathlib import Path

from absl import flags

from fact_jax.backbone.config import get_variant
from fact_jax.cli import arguments
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.files.factors import TrainedTask, check_fits
from fact_jax.files.peft_writing import NAMES, adapter_files
from fact_jax.files.timm_models import timm_model
from fact_jax.files.weights import load_vit
from fact_jax.images.preprocessing import preprocessing_of
from fact_jax.serving.folders import WRITERS, card_of, merged_base, merged_files
from fact_jax.serving.programs import (
    Program,
    onnx_factors_files,
    onnx_files,
    require_onnx,
    stablehlo_files,
)
from fact_jax.sweep.result import Result

PROGRAMS = {
    "stablehlo": stablehlo_files,
    "onnx": onnx_files,
    "onnx_factors": onnx_factors_files,
}
FORMATS = ("peft", *WRITERS, *PROGRAMS)


def define_flags() -> None:
    """Defines --format and its options."""
    flags.DEFINE_enum("format", None, FORMATS, "Write a new folder in this format.")
    flags.DEFINE_enum("names", NAMES[0], NAMES, "With --format peft: whose names of layers.")
    flags.DEFINE_string(
        "base_model", "", "The base's name on the hub, for the card. Default: that of --weights."
    )


def files(
    task: TrainedTask | None, options: flags.FlagValues, console: Console
) -> dict[str, bytes]:
    """The files of the folder that --format asks for, by their names.

    Prints the setting of the training that timm's models have otherwise.
    """
    to, variant = options.format, arguments.variant_of(task, options.variant)
    if task is None and to not in WRITERS:
        raise UserError(f"--format {to} needs a trained task: give --factors.")
    if to.startswith("onnx"):  # before the weights are read
        require_onnx()
    elif to == "stablehlo":
        require("StableHLO", "stablehlo", "flatbuffers")
    facts = {} if task is None else measured(task.path)
    base_model = _base_model(task, options)
    if task is not None and to == "peft":
        config = get_variant(variant).replace(**task.forward_settings)
        check_fits(task, config, None, any_weights=True)
        return adapter_files(task, config, card_of(task, config, base_model, facts), options.names)
    arguments.say_base(task, options.weights)
    model, base = load_vit(variant, options.weights, **(task.forward_settings if task else {}))
    normalisation = preprocessing_of(variant).normalisation
    config = model.config
    card = card_of(task, config, base_model, facts, normalisation)
    if task is not None and to in PROGRAMS:
        program = Program(config, base, task, card)
        program.check(options.any_weights)
        return PROGRAMS[to](program)
    if to == "timm" and (eps := timm_model(config).layer_norm_eps) != config.layer_norm_eps:
        console.print(
            f"layer_norm_eps is {config.layer_norm_eps} here and {eps} in timm's model, which has "
            "no argument for it."
        )
    merged = merged_base(config, base, task, options.any_weights)
    metadata = task.metadata if task else {"normalisation": normalisation}
    return merged_files(to, config, merged, metadata, card)


def _base_model(task: TrainedTask | None, options: flags.FlagValues) -> str:
    """The name of the base model on the card; empty if nothing names it."""
    weights = (options.weights or "").removeprefix("hf:").partition("@")[0]
    named = weights if (options.weights or "").startswith("hf:") else ""
    stated = task.metadata.get("base_model") if task else None
    return options.base_model or named or str(stated or "")


def measured(path: Path) -> dict[str, str]:
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
