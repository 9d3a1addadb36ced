"""The image pipeline against bicubic in numpy, PIL's own JPEG files, and order."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from fact_jax.images import pipeline


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
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


def numpy_bicubic(image, size):
    """[size, size, 3]: horizontal pass, then vertical, as PIL has it."""
    across = resample_rows(image.transpose(1, 0, 2).astype(float), size).transpose(1, 0, 2)
    return resample_rows(across, size)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (96, 96), (32, 32), (47, 230)])
def test_resize_is_antialiased_bicubic_without_keeping_the_aspect_ratio(height, width):
    """Against numpy; one grey level for PIL's fixed-point rounding."""
    image = picture(height, width)
    ours = pipeline.decode(encoded(image), 224)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours - numpy_bicubic(image, 224)).max() <= 1


# First channel of a 6 x 9 picture made 4 x 4 and 7 x 7 by Pillow 11.0, 12.0 and 13.0,
# resize((s, s), Image.Resampling.BICUBIC).
PILLOW = {
    4: [[51, 159, 90, 130], [139, 135, 98, 169], [137, 138, 153, 180], [91, 135, 118, 168]],
    7: [
        [7, 73, 145, 188, 18, 89, 163],
        [32, 117, 210, 80, 104, 195, 87],
        [141, 134, 125, 127, 49, 162, 174],
        [139, 185, 106, 170, 113, 113, 247],
        [91, 185, 115, 174, 166, 154, 199],
        [113, 88, 94, 173, 80, 198, 139],
        [119, 44, 201, 114, 133, 82, 240],
    ],
}


@pytest.mark.parametrize("size", PILLOW)
def test_pixels_are_those_that_every_allowed_pillow_gives(size):
    y, x, c = np.mgrid[:6, :9, :3]
    image = ((y * y * 37 + x * 53 + c * 91 + x * y * 11) % 256).astype(np.uint8)
    ours = pipeline.decode(encoded(image), size)
    np.testing.assert_array_equal(ours[..., 0], PILLOW[size])


PALETTE = np.array([[10, 20, 30], [200, 100, 0], [0, 255, 0], [90, 9, 250]], np.uint8)


def stored_files(height, width):
    """{name: (bytes, RGB that they stand for)}; None: what PIL decodes from the JPEG."""
    rng = np.random.default_rng(height)
    rgb, grey = picture(height, width), picture(height, width, channels=1)
    alpha = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    index = rng.integers(0, 4, (height, width), dtype=np.uint8)
    palette = Image.fromarray(index, "P")
    palette.putpalette(PALETTE.ravel().tolist())
    bits = rng.integers(0, 2, (height, width)).astype(bool)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be shown turned by a right angle

    def three(array):
        return np.stack([array] * 3, axis=-1)

    return {
        "rgb.png": (encoded(rgb), rgb),
        "grey.png": (encoded(grey), three(grey)),
        "palette.png": (encoded(palette), PALETTE[index]),
        "palette with transparency.png": (encoded(palette, transparency=1), PALETTE[index]),
        "grey and alpha.png": (encoded(np.dstack([grey, alpha])), three(grey)),
        "rgb and alpha.png": (encoded(np.dstack([rgb, alpha])), rgb),
        "1 bit.png": (encoded(bits), three(bits * np.uint8(255))),
        "palette.gif": (encoded(palette, "GIF"), PALETTE[index]),
        "transparent.gif": (encoded(palette, "GIF", transparency=2), PALETTE[index]),
        "lossless.webp": (encoded(rgb, "WEBP", lossless=True), rgb),
        "rgb.jpg": (encoded(rgb, "JPEG"), None),
        "grey.jpg": (encoded(grey, "JPEG"), None),
        "turned.jpg": (encoded(rgb, "JPEG", exif=turned), None),
        "cmyk.jpg": (encoded(Image.fromarray(np.dstack([rgb, alpha]), "CMYK"), "JPEG"), None),
    }


@pytest.mark.parametrize(("height", "width"), [(500, 333), (150, 61)])
def test_tall_pictures_are_resized_across_first_as_for_the_published_numbers(height, width):
    """Pillow 13 (its pull request 9549) changes the order: this holds the pin below it."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for size in (224, 98):
        ours = pipeline.decode(encoded(image), size)
        assert np.abs(ours - numpy_bicubic(image, size)).max() <= 2


@pytest.mark.parametrize("name", list(stored_files(8, 8)))
@pytest.mark.parametrize(("height", "width"), [(64, 64), (17, 230)])
def test_every_kind_of_file_becomes_what_pil_makes_of_it(name, height, width):
    """Bit-equal with PIL, up and down; and bicubic in numpy of the colours meant, but for ties."""
    data, meant = stored_files(height, width)[name]
    for size in (224, 64, 20):
        with Image.open(io.BytesIO(data)) as file:
            theirs = np.asarray(file.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        ours = pipeline.decode(data, size)
        np.testing.assert_array_equal(ours, theirs)
        if meant is not None:
            error = np.abs(ours - numpy_bicubic(meant, size))
            assert error.max() <= 2 * (meant.shape != ours.shape)  # exact at the native size
            assert (error > 0).mean() < 0.02


def test_binary_pixels_are_shown_black_and_white():
    image = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    decoded = pipeline.decode(encoded(image), 64, binary=True)
    np.testing.assert_array_equal(decoded, np.stack([image * 255] * 3, axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_copy_is_the_file_that_pil_writes_by_default_at_the_native_size(channels, tmp_path):
    """NOAH's script stored the images so: tiled to RGB, saved as .jpg with no further argument."""
    image = picture(33, 50, channels)
    rgb = image if channels == 3 else np.tile(image[..., None], (1, 1, 3))
    Image.fromarray(rgb).save(tmp_path / "000000.jpg")
    with Image.open(tmp_path / "000000.jpg") as file:
        theirs = np.asarray(file.convert("RGB").resize((48, 48), 3))
    ours = pipeline.decode(encoded(image), 48, jpeg_quality=75)
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != pipeline.decode(encoded(image), 48))


def test_map_ahead_keeps_the_order_and_works_ahead_of_the_consumer():
    done = []

    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0)
        done.append(item)
        return item * item

    results = pipeline.map_ahead(slow_first, range(20), ahead=8, num_threads=4)
    assert next(results) == 0
    deadline = time.monotonic() + 60
    while len(done) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(done) == 9  # the first and eight ahead, no more
    assert list(results) == [i * i for i in range(1, 20)]


def test_map_ahead_raises_and_stops():
    def fail(item):
        if item == 3:
            raise RuntimeError("three")
        return item

    results = pipeline.map_ahead(fail, range(10), ahead=2)
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    before = threading.active_count()
    results = pipeline.map_ahead(fail, range(3), ahead=2, num_threads=2)
    next(results)
    results.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
