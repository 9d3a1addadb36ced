"""Checkpoints that are almost a plain ViT: some are read, the others are named in messages."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fact_jax.files.layouts import Layout
from fact_jax.files.tensors import TensorFile

# Sign in a tensor's name, and what a file with it is and what to do, as the end of a sentence.
_PLAIN = "another architecture than a plain ViT, and not read here. Use a plain ViT's file."
_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"\.lora_(A|B|embedding)|\.lora_magnitude|\.base_layer\.|\.original_module\.",
        "a PEFT model or adapter that is not merged into its ViT. Give an adapter's folder as the "
        "factors, beside its base model's weights; or merge it in Python: "
        "model = model.merge_and_unload(), then model.save_pretrained('merged'), and give that "
        "folder.",
    ),
    # Before BEiT, whose relative positions it has, too.
    (
        r"layers\.\d+\.blocks\.\d+|patch_merging|downsample\.reduction",
        f"a Swin Transformer, {_PLAIN}",
    ),
    (
        r"relative_position_bias|rel_pos_bias|attn\.[qv]_bias$",
        "a BEiT, or has relative positions as a BEiT has. BEiTs whose every block has a table, and "
        "whose features are the mean of the patches, are read as beit_b16 or beit_l16.",
    ),
    (
        r"rope_embed|\bstorage_tokens$",
        "a DINOv3 in the names of its own training, which are not read here. Use the file of "
        "Hugging Face or timm.",
    ),
    (r"\.blocks\.\d+\.attn\.rope|\bperiods$", f"a ViT with rotary positions, {_PLAIN}"),
    (r"mlp\.(w12|w3|weights_in|weights_out)\.", f"a ViT with gated MLPs, {_PLAIN}"),
    (
        r"visual\.|\bln_pre\.",
        "a CLIP in the names of its own training, which are not read here. Use the file of Hugging "
        "Face or timm.",
    ),
    (r"text_model\.", "the text tower of CLIP or SigLIP alone. Use a file with the vision tower."),
    (r"\bconv1\.weight$|stages\.\d+\.|layer1\.0\.", f"a convolutional network, {_PLAIN}"),
)


def foreign(names: Iterable[str]) -> str:
    """The kind of model that these tensors belong to, with advice; empty if it is not known."""
    text = "\n".join(names)
    return next((kind for sign, kind in _KINDS if re.search(sign, text, re.MULTILINE)), "")


class _Renamed:
    """A view of a file under other tensor names."""

    def __init__(self, file: TensorFile, stored: dict[str, str]):
        self.path, self.metadata = file.path, file.metadata
        self.shapes = {name: file.shapes[old] for name, old in stored.items()}
        self._file, self._stored = file, stored

    def read(self, name: str) -> np.ndarray:
        return self._file.read(self._stored[name])

    def close(self) -> None:
        self._file.close()


def unchunked(file: TensorFile) -> TensorFile:
    """The file under timm's names, where DINOv2's training stored it under others.

    There, ``blocks.1.3.norm1.weight`` is of block 3, in the second chunk
    (dinov2/models/vision_transformer.py, `BlockChunk`), and registers are `register_tokens`.
    """
    stored = {}
    for name in file.shapes:
        plain = re.sub(r"(\bblocks\.)\d+\.(\d+\.)", r"\1\2", name)
        stored[re.sub(r"(?<!embeddings\.)\bregister_tokens$", "reg_token", plain)] = name
    if len(stored) < len(file.shapes) or all(a == b for a, b in stored.items()):
        return file
    return _Renamed(file, stored)


def choose_teacher(vits: list[tuple[Layout, str]], path: Path) -> list[tuple[Layout, str]]:
    """The teacher alone, where a file of DINO or DINOv2 holds it beside its student.

    Both projects evaluate the teacher.
    """
    teachers = [item for item in vits if re.search(r"\bteacher\.", item[1])]
    students = [item for item in vits if re.search(r"\bstudent\.", item[1])]
    if len(teachers) == 1 and len(teachers) + len(students) == len(vits) > 1:
        warnings.warn(f"{path} holds a student and a teacher; the teacher is read.", stacklevel=3)
        return teachers
    return vits
