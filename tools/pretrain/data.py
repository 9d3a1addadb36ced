"""Sprites for pre-training the bundled ViT: glyphs of fonts and emoji, with class numbers.

The sources are free packages of Debian and npm (docs/bundled_model.md lists them and their
licences); none holds an image of the offline tasks. Decimal digits are left out, in every script,
so that the digits task stays unseen.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fact_jax.errors import UserError

SIZE = 40  # side of a sprite, pixels
_MARGIN = 2
_MIN_INK = 0.02  # of the sprite's area; less is a blank glyph
_MAX_FACES = 250  # of one character
_MAX_CHARACTERS = 3000
_CHARACTER_CLASSES = 400  # kept: those with most faces
_VARIATIONS = ("fe0f", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")  # style, skin tones


class Sprites(NamedTuple):
    """n sprites sorted by class.

    alpha: uint8 [n, 40, 40]; colour: uint8 [m, 40, 40, 3], straight alpha; colour_index: int32 [n],
    row in `colour` or -1 for a sprite without colour; first, count: int32 [classes], the sprites of
    a class; source: int32 [classes], 0 glyphs, 1 emoji.
    """

    alpha: np.ndarray
    colour: np.ndarray
    colour_index: np.ndarray
    first: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    source: np.ndarray


def load_sprites(fonts: str, emoji: tuple[str, ...], cache: Path) -> Sprites:
    """Sprites from a folder of font files and folders of emoji pictures; made once, then cached."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        sprites = _make_sprites(Path(fonts), [Path(e) for e in emoji])
        temporary = cache.with_suffix(".part.npz")
        np.savez_compressed(temporary, **sprites._asdict())
        temporary.rename(cache)
    with np.load(cache) as arrays:
        return Sprites(**{name: arrays[name] for name in Sprites._fields})


def _make_sprites(fonts: Path, emoji: list[Path]) -> Sprites:
    alpha: list[np.ndarray] = []
    colour: list[np.ndarray] = []
    index, count, source = [], [], []
    groups: tuple[dict, ...] = (_read_fonts(fonts), _read_emoji(emoji))
    for number, group in enumerate(groups):
        for _, images in sorted(group.items()):
            for image in images:
                index.append(len(colour) if image.ndim == 3 else -1)
                alpha.append(image[..., 3] if image.ndim == 3 else image)
                if image.ndim == 3:
                    colour.append(image[..., :3])
            count.append(len(images))
            source.append(number)
    count_ = np.asarray(count, np.int32)
    logging.info("%d sprites of %d classes", len(alpha), len(count))
    return Sprites(
        np.stack(alpha),
        np.stack(colour),
        np.asarray(index, np.int32),
        np.cumsum(count_, dtype=np.int32) - count_,
        count_,
        np.asarray(source, np.int32),
    )


def _font_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf"))
    if not files:
        raise UserError(
            f"The fonts folder {folder} holds no .ttf or .otf file. docs/bundled_model.md says how "
            "to fill it from Debian's packages."
        )
    return files


def _wanted(character: str) -> bool:
    """Letters, punctuation and symbols that stand alone; no digit in any form, no CJK or Hangul."""
    if unicodedata.category(character)[0] not in "LPS":
        return False
    plain = unicodedata.normalize("NFKD", character)
    if len(plain) > 1 or any(unicodedata.numeric(c, None) is not None for c in plain):
        return False
    return not 0x2E80 <= ord(character) <= 0xD7FF


def _read_fonts(folder: Path) -> dict[int, list[np.ndarray]]:
    """{character: glyph masks of its faces}; masks are uint8 [40, 40]."""
    files = _font_files(folder)
    faces: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        for code in sorted(_characters(path)):
            if code < 0x20000 and _wanted(chr(code)):
                faces[code].append(path)
    common = sorted((c for c in faces if len(faces[c]) >= 2), key=lambda c: -len(faces[c]))
    rng = np.random.default_rng(0)
    by_font: dict[Path, list[int]] = defaultdict(list)
    for code in common[:_MAX_CHARACTERS]:
        chosen = faces[code]
        if len(chosen) > _MAX_FACES:
            keep = sorted(rng.choice(len(chosen), _MAX_FACES, replace=False))
            chosen = [chosen[i] for i in keep]
        for path in chosen:
            by_font[path].append(code)
    glyphs: dict[int, list[np.ndarray]] = defaultdict(list)
    for path, codes in by_font.items():
        for code, mask in _render(path, codes):
            glyphs[code].append(mask)
    merged = _merge_lookalikes(glyphs)
    largest = sorted(sorted(merged), key=lambda code: -len(merged[code]))[:_CHARACTER_CLASSES]
    return {code: merged[code] for code in largest}


def _characters(path: Path) -> set[int]:
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True) as font:
            return set(font.getBestCmap() or ())
    except (TTLibError, KeyError, AssertionError, OSError) as error:
        logging.warning("skipped %s: %s", path, error)
        return set()


def _render(path: Path, codes: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    try:
        font = ImageFont.truetype(str(path), 48)
    except OSError as error:
        logging.warning("skipped %s: %s", path, error)
        return
    for code in codes:
        left, top, right, bottom = font.getbbox(chr(code))
        width, height = int(right - left), int(bottom - top)
        if not (0 < width <= 400 and 0 < height <= 400):
            continue
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).text((-left, -top), chr(code), fill=255, font=font)
        mask = _square(image)
        if mask.mean() > _MIN_INK * 255:
            yield code, mask


def _square(image: Image.Image) -> np.ndarray:
    """Fits an image into the sprite with its aspect ratio kept, on a transparent ground."""
    inner = SIZE - 2 * _MARGIN
    factor = inner / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    sprite = Image.new(image.mode, (SIZE, SIZE))
    sprite.paste(
        image.resize(size, Image.Resampling.BICUBIC),
        ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2),
    )
    return np.asarray(sprite)


def _merge_lookalikes(glyphs: dict[int, list[np.ndarray]]) -> dict[int, list[np.ndarray]]:
    """Joins characters drawn alike (Latin, Greek and Cyrillic A): a third of their faces equal."""
    owners: dict[bytes, list[int]] = defaultdict(list)
    for code in sorted(glyphs):
        for key in {mask.tobytes() for mask in glyphs[code]}:
            owners[key].append(code)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for codes in owners.values():
        if len(codes) <= 20:  # more is the font's box for a missing glyph
            for other in codes[1:]:
                shared[codes[0], other] += 1
    target = {code: code for code in glyphs}
    for (one, other), n in sorted(shared.items()):
        if n >= min(len(glyphs[one]), len(glyphs[other])) / 3:
            target[other] = target[one]
    merged: dict[int, list[np.ndarray]] = defaultdict(list)
    boxes = {key for key, codes in owners.items() if len(codes) > 20}
    for code in sorted(glyphs):
        different = {m.tobytes(): m for m in glyphs[code] if m.tobytes() not in boxes}
        merged[target[code]].extend(different.values())
    return {code: masks for code, masks in merged.items() if len(masks) >= 2}


def _read_emoji(folders: list[Path]) -> dict[str, list[np.ndarray]]:
    """{code points: RGBA uint8 [40, 40, 4] of each vendor}; skin tones are one class."""
    pictures: dict[str, list[np.ndarray]] = defaultdict(list)
    for folder in folders:
        files = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".webp"))
        if not files:
            raise UserError(f"The emoji folder {folder} holds no .png or .webp file.")
        for path in files:
            codes = [c for c in path.stem.split("-") if c not in _VARIATIONS]
            if not codes or "20e3" in codes or "1f522" in codes:  # keycaps and 1234 show digits
                continue
            with Image.open(path) as image:
                pictures["-".join(codes)].append(_square(image.convert("RGBA")))
    return pictures
