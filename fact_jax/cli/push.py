"""A trained task on the Hugging Face hub, for others to load.

    python -m experiments.push --factors F.safetensors --repo owner/name
    python -m experiments.push --factors FOLDER --repo owner/name     # of export --format

A factor file gets a card with its labels, preprocessing and accuracy; `load_factors` and `predict`
read it as hf:owner/name. A folder is uploaded as it is. The token is that of `hf auth login` or of
HF_TOKEN; it is never printed.
"""

import os
from pathlib import Path

from absl import flags

from fact_jax.backbone.config import get_variant
from fact_jax.cli import arguments
from fact_jax.cli.export_folder import measured
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.files.card import factor_card
from fact_jax.files.hub import TASK, folder_files, push, task_files
from fact_jax.files.load import load_factors
from fact_jax.serving.folders import card_of


def define_flags() -> None:
    """Defines --factors, --repo and their options."""
    flags.DEFINE_string("factors", "", "Factor file, or a folder that export --format wrote.")
    flags.DEFINE_string("repo", "", "OWNER/NAME on the hub; it is made if there is none.")
    flags.DEFINE_bool("private", False, "Make a new repository private.")
    flags.DEFINE_string("message", "A task of fact-jax", "Message of the commit.")
    flags.DEFINE_string("base_model", "", "The base's name on the hub, for the card.")
    flags.DEFINE_string("variant", None, "The ViT, if the factor file does not say it.")


def card_text(
    path: str, base_model: str, repo: str, variant: str | None = None
) -> tuple[dict[str, bytes], str]:
    """The files of a factor file's repository, and what the task is called."""
    arguments.refuse_torch(Path(path))
    task = load_factors(path)
    if "format_version" not in task.metadata:  # an adapter of PEFT
        raise arguments.of_other_code(Path(path))
    variant = arguments.variant_of(task, variant)
    config = get_variant(variant).replace(**task.forward_settings)
    card = card_of(task, config, base_model, measured(task.path))
    return task_files(task, factor_card(card, variant, repo)), card.name


def main() -> None:
    options = flags.FLAGS
    for name in ("factors", "repo"):
        if not options[name].value:
            raise UserError(f"--{name} is missing. `{command('push', '--help')}` lists all.")
    path = os.path.expanduser(options.factors)
    if os.path.isdir(path):
        files, name = folder_files(Path(path)), Path(path).resolve().name
    else:
        files, name = card_text(path, options.base_model, options.repo, options.variant)
    address = push(files, options.repo, private=options.private, message=options.message)
    Console().print(f"{name}: {len(files)} files are at {address}", soft_wrap=True)
    if "adapter_config.json" in files or TASK in files:
        Console().print(f"To load it: fact_jax.load_factors('hf:{options.repo}')", soft_wrap=True)
