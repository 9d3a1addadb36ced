"""Factors and weights in the formats of other code (docs/exchange.md, docs/files.md).

    python -m experiments.export --factors F.safetensors --out F.pt            # for PyTorch's FacT
    python -m experiments.export --factors F.pt --scale S --variant vit_b16 [--weights PATH] \\
        --out F.safetensors                                                    # and back
    python -m experiments.export --factors F --variant vit_b16 --weights PATH --out merged.npz
    python -m experiments.export --variant vit_b16 --weights hf:OWNER/NAME --out weights.npz
    python -m experiments.export --factors F --format peft --out DIR           # a LoRA adapter
    python -m experiments.export --factors F --variant vit_b16 --weights PATH \\
        --format hf|timm --out DIR

A merged .npz is a plain ViT with the task's head (Google layout), as timm and FacT's code load it
(but for DINOv2's LayerScale, which they do not know). With --format a new folder is written.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import flags

from fact_jax.backbone.config import ViTConfig, get_variant
from fact_jax.cli import arguments, export_folder
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TIMM, TrainedTask
from fact_jax.files.folder import check_new_folder, write_folder
from fact_jax.files.load import load_factors
from fact_jax.files.weights import load_vit
from fact_jax.ranges import SCALE, check
from fact_jax.serving import export
from fact_jax.serving.outputs import check_not_input, prepare_output


def define_flags() -> None:
    """Defines --factors, --out and their options."""
    flags.DEFINE_string(
        "factors", "", "Factor file or PEFT adapter; without it, the weights alone."
    )
    flags.DEFINE_string("out", "", "What to write: .pt, .safetensors or .npz; else a new folder.")
    export_folder.define_flags()
    arguments.define_factor_flags()


def print_differences(vit: dict[str, Any], console: Console) -> None:
    """Prints the settings that the PyTorch code's ViT, timm's, has otherwise and no file holds."""
    for name, timm in TIMM.items():
        if (value := vit.get(name, timm)) != timm:
            console.print(f"{name} is {value} here and {timm} in timm's ViT: set it there.")


def to_torch(task: TrainedTask, console: Console) -> bytes:
    """The file for the PyTorch code. Prints the settings that the file cannot hold."""
    content = export.torch_file(task)
    console.print(
        f"The PyTorch code does not store the scale: load with scale {task.method.scale:g} "
        f"(--scale, or `scale` in its yaml) and rank {getattr(task.method, 'rank', 0)} (--dim)."
    )
    print_differences(task.metadata["vit"], console)
    if task.metadata.get("normalisation", "imagenet") != "imagenet":
        console.print(
            f"Trained on images normalised as {task.metadata['normalisation']!r}; that code's are "
            "normalised as 'imagenet'."
        )
    return content


def to_ours(task: TrainedTask) -> bytes:
    """Our factor file of one of other code. With --weights it names the weights it belongs to."""
    if "format_version" in task.metadata:
        raise UserError(f"{task.path} is a factor file of fact-jax already.")
    variant, base = arguments.variant_of(task, flags.FLAGS.variant), None
    config: ViTConfig = get_variant(variant).replace(**task.forward_settings)
    if weights := flags.FLAGS.weights:
        model, base = load_vit(variant, weights, **task.forward_settings)
        config = model.config
    return export.factor_file(task, variant, config, base)


def to_npz(task: TrainedTask | None, console: Console) -> bytes:
    """The weights, with the increments merged and the head if there are factors."""
    forward = task.forward_settings if task else {}
    arguments.say_base(task, flags.FLAGS.weights)
    model, base = load_vit(
        arguments.variant_of(task, flags.FLAGS.variant), flags.FLAGS.weights, **forward
    )
    vit = task.metadata["vit"] if task else dataclasses.asdict(model.config)
    print_differences(vit, console)
    return export.npz_file(model.config, base, task, flags.FLAGS.any_weights)


def to_file(out: str, task: TrainedTask | None, console: Console) -> bytes:
    """The content of a file whose format is its suffix."""
    suffix = Path(out).suffix
    if task is None or suffix == ".npz":
        return to_npz(task, console)
    return to_torch(task, console) if suffix == ".pt" else to_ours(task)


def check_flags(out: str, factors: str) -> None:
    """Raises UserError for flags that are wrong whatever the files hold."""
    options = flags.FLAGS
    if options.scale is not None:
        check("--scale", options.scale, SCALE)
    suffix = Path(out).suffix
    if options.format:
        if not out:
            raise UserError("--out is missing: give the name of a new folder.")
        check_new_folder(out)
        return
    if suffix not in (".pt", ".safetensors", ".npz"):
        raise UserError(
            f"--out {out!r} must end in .pt, .safetensors or .npz, or give --format and a folder."
        )
    if not factors and suffix != ".npz":
        raise UserError("Without --factors, weights are written, and those as .npz only.")
    check_not_input(out, factors=factors, weights=options.weights)
    prepare_output(out)


def main() -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    options = flags.FLAGS
    factors, out = (os.path.expanduser(path) for path in (options.factors, options.out))
    check_flags(out, factors)
    task = load_factors(factors, options.method, options.scale) if factors else None
    if options.format:
        size = write_folder(out, export_folder.files(task, options, console))
    else:
        content = to_file(out, task, console)
        size = len(content)
        write_atomically(out, content)
    console.print(f"Wrote {out} ({size:,} bytes).")
