"""The image pipeline against bicubic in numpy, PIL's own JPEG files, and order."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from fact_jax.data import images


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def picture(height, width, channels=3, seed=0):
    """A smooth random picture with some texture, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return noisy if channels == 3 else noisy[..., 0]


def cubic(x):
    """Keys' cubic with a = -1/2, as PIL has it (a = -3/4 in OpenCV and torch)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resample_rows(array, size):
    """One pass over axis 0: the kernel widened when shrinking, weights of sum 1, rounded."""
    scale = array.shape[0] / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distances = np.arange(array.shape[0])[None] - centres[:, None]
    weights = cubic(distances / max(scale, 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.round(np.einsum("oi,i...->o...", weights, array)), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (96, 96), (32, 32), (47, 230)])
def test_resize_is_antialiased_bicubic_without_keeping_the_aspect_ratio(height, width):
    """Against numpy: horizontal pass, then vertical; one grey level for fixed-point rounding."""
    image = picture(height, width)
    ours = images.decode(encoded(image), 224)
    across = resample_rows(image.transpose(1, 0, 2).astype(float), 224).transpose(1, 0, 2)
    theirs = resample_rows(across, 224)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= 1


def test_native_size_is_bit_equal():
    image = picture(64, 64)
    np.testing.assert_array_equal(images.decode(encoded(image), 64), image)


def test_greyscale_palette_and_alpha_become_three_channels():
    grey = picture(40, 40, channels=1)
    decoded = images.decode(encoded(grey), 40)
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, axis=-1))
    alpha = np.dstack([picture(40, 40), np.full((40, 40), 7, np.uint8)])
    np.testing.assert_array_equal(images.decode(encoded(alpha), 40), alpha[..., :3])


def test_binary_pixels_are_shown_black_and_white():
    image = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    decoded = images.decode(encoded(image), 64, binary=True)
    np.testing.assert_array_equal(decoded, np.stack([image * 255] * 3, axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_copy_is_the_file_that_pil_writes_by_default_at_the_native_size(channels, tmp_path):
    """As NOAH's script stored the images: tiled to RGB, saved as .jpg with no further argument."""
    image = picture(33, 50, channels)
    rgb = image if channels == 3 else np.tile(image[..., None], (1, 1, 3))
    Image.fromarray(rgb).save(tmp_path / "000000.jpg")
    with Image.open(tmp_path / "000000.jpg") as file:
        theirs = np.asarray(file.convert("RGB").resize((48, 48), 3))
    ours = images.decode(encoded(image), 48, jpeg_quality=75)
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != images.decode(encoded(image), 48))


def test_bytes_that_are_no_image_raise_oserror():
    with pytest.raises(OSError, match="cannot identify"):
        images.decode(b"not an image", 8)
    with pytest.raises(OSError, match="(?i)truncated"):
        images.decode(encoded(picture(64, 64), "JPEG")[:600], 8)


def test_map_ahead_keeps_the_order_and_works_ahead_of_the_consumer():
    done = []

    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        done.append(item)
        return item * item

    results = images.map_ahead(slow_first, range(20), ahead=8, num_threads=4)
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while len(done) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(done) == 9  # the first and eight ahead, no more
    assert list(results) == [i * i for i in range(1, 20)]


def test_map_ahead_raises_and_stops():
    def fail(item):
        if item == 3:
            raise RuntimeError("three")
        return item

    results = images.map_ahead(fail, range(10), ahead=2)
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    before = threading.active_count()
    results = images.map_ahead(fail, range(3), ahead=2, num_threads=2)
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
