"""Pictures that others made: what is refused, what is scaled, how many at a time."""

import contextlib
import io
import os
import random
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fact_jax.images import decoder, pipeline
from fact_jax.images.decoder import PictureError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def long_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (2 << 20), zip=True)
    return encoded(NOISE, pnginfo=info)


def qoi(width, height):
    return b"qoif" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\3\0" + b"\xc0" * 9


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "no image of a known format"),
        (b"", "no image of a known format"),
        (encoded(NOISE, "JPEG")[:600], "(?i)truncated"),
        (encoded(Image.new("1", (14000, 14000))), "too large: .*196000000 pixels"),
        (long_text(), "Decompressed data too large"),  # ValueError
        (encoded(NOISE)[:24], "."),
        (b"P6\n10 1x\n", "."),  # ValueError
        (qoi(100, 100), "IndexError: index out of range"),
        (encoded(NOISE, "AVIF")[:-30], "Truncated data"),  # SyntaxError
        (b"8BPS\0\1" + bytes(40), "no image of a known format"),  # Photoshop's is not opened
        # 1 x 1,000,000 pixels: 0.9 GB between the passes of the resize.
        (encoded(Image.new("1", (1, 1_000_000))), "1 x 1000000 pixels cannot be made a square"),
        (encoded(Image.new("1", (2_000_000, 1))), "expected at most 1,000,000 on a side"),
    ],
)
def test_whatever_a_decoder_raises_is_a_picture_error_with_a_reason(data, reason):
    with pytest.raises(PictureError, match=reason) as caught:
        pipeline.decode(data, 224)
    assert isinstance(caught.value, OSError)  # as `decode` has always promised
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("r"), SyntaxError("s"), IndexError("i"), KeyError("k"), MemoryError()),
        *(OverflowError("o"), ZeroDivisionError("z"), EOFError(), TypeError("t"), zlib.error("x")),
        *(AttributeError("a"), UserWarning("w"), Image.DecompressionBombError("b")),
    ],
)
def test_errors_of_other_kinds_have_a_reason_too(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(PictureError, match="."):
        pipeline.decode(encoded(NOISE), 8)


def test_mutated_files_of_every_format_are_decoded_or_refused():
    """benchmarks/robustness/fuzz.py tries more of them."""
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "PPM", "QOI", "WEBP", "AVIF", "JPEG2000", "TIFF"):
        data = encoded(NOISE, kind)
        for _ in range(30):
            mutated = bytearray(data)
            mutated[rng.randrange(min(len(data), 300))] = rng.randrange(256)
            with contextlib.suppress(PictureError):
                assert pipeline.decode(bytes(mutated), 8).shape == (8, 8, 3)


def test_warnings_of_pillow_are_neither_noise_nor_errors(monkeypatch):
    """Pictures that Pillow thinks large, and a broken one inside a file of several, warn nobody."""
    several = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE])
    broken = several.replace(b"MPF\0II*\0", b"MPF\0II*\1")
    assert broken != several
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are refused
    for filters in ("always", "error"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(filters)
            pipeline.decode(encoded(NOISE), 8)
            pipeline.decode(broken, 8)
        assert not caught


def grey16(values):
    return np.asarray(values, np.uint16).reshape(1, -1)


SCALED = pytest.mark.filterwarnings("ignore:some pictures have more than 8 bits")


def test_pictures_that_are_scaled_are_said():
    with pytest.warns(UserWarning, match="more than 8 bits .*floats .*docs/data.md"):
        pipeline.decode(encoded(np.ones((8, 8), np.float32), "TIFF"), 8)
    with pytest.raises(UserWarning):  # where a caller made an error of it, it is no damage
        pipeline.decode(encoded(grey16([7]).repeat(9, 0)), 8)


@SCALED
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_divided_by_257(kind):
    values = grey16([0, 128, 129, 257, 1000, 32768, 65406, 65407, 65535])
    pixels = pipeline.decode(encoded(np.repeat(values, 9, axis=0), kind), 9)
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 1, 4, 128, 254, 255, 255])
    assert (pixels == pixels[..., :1]).all()
    every = np.arange(256, dtype=np.uint16).reshape(16, 16)  # 8 bits stored as 16
    pixels = pipeline.decode(encoded(every * np.uint16(257), kind), 16)
    np.testing.assert_array_equal(pixels[..., 0], every)


@SCALED
def test_grey_of_12_bits_is_scaled_by_its_own_range():
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 110), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    data = head.ljust(110, b"\0") + bytes.fromhex("000 fff 800 00f".replace(" ", ""))
    values = np.repeat(pipeline.decode(data, 4)[:1, :, 0], 4, axis=0)
    np.testing.assert_array_equal(values[0], [0, 255, 128, 1])


@SCALED
def test_floats_from_0_to_1_are_scaled_and_other_numbers_refused():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = pipeline.decode(encoded(ramp, "TIFF"), 16)
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))
    for wrong, found in ((ramp * 255, "0 to 255"), (ramp - 1, "-1 to 0"), (ramp * np.nan, "nan")):
        with pytest.raises(PictureError, match=rf"floats from .*{found}.*; expected 0 to 1"):
            pipeline.decode(encoded(wrong, "TIFF"), 16)
    with pytest.raises(PictureError, match="32-bit or signed integers"):
        pipeline.decode(encoded(np.arange(64, dtype=np.int32).reshape(8, 8), "TIFF"), 8)


def test_a_path_is_decoded_as_its_bytes_and_a_fifo_is_not_opened(tmp_path):
    data = encoded(NOISE, "TIFF", compression="tiff_lzw")
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(pipeline.decode(tmp_path / "a.tif", 8), pipeline.decode(data, 8))
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(PictureError, match="it is a FIFO"):
        pipeline.decode(tmp_path / "x.png", 8)
    with pytest.raises(FileNotFoundError):
        pipeline.decode(tmp_path / "none.png", 8)


def test_pictures_in_flight_are_bound_by_their_memory(monkeypatch):
    """Ten of 4 kB where 10 kB are allowed: two at a time; and one of 40 kB goes alone."""
    small, large = encoded(Image.new("RGB", (32, 32))), encoded(Image.new("RGB", (100, 100)))
    monkeypatch.setattr(decoder, "IN_FLIGHT", decoder.Budget(10_000))
    lock, now, most, alone, two = threading.Lock(), [], [], [], threading.Event()

    def slow(image, binary):
        with lock:
            now.append(image.size)
            most.append(len(now))
            alone.extend(now if image.size == (100, 100) else ())
            if len(now) == 2:
                two.set()
        assert image.size == (100, 100) or two.wait(60)
        time.sleep(0.01)
        with lock:
            now.remove(image.size)
        return image

    monkeypatch.setattr(decoder, "_rgb", slow)
    data = [small] * 5 + [large] + [small] * 5
    assert len(list(pipeline.map_ahead(lambda d: pipeline.decode(d, 8), data, 20, 8))) == 11
    assert max(most) == 2
    assert alone == [(100, 100)]
    assert decoder.IN_FLIGHT._reserved == 0


def test_a_reservation_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(decoder, "IN_FLIGHT", decoder.Budget(1000))
    for _ in range(3):
        with pytest.raises(PictureError):
            pipeline.decode(encoded(NOISE, "JPEG")[:600], 8)
    assert decoder.IN_FLIGHT._reserved == 0
