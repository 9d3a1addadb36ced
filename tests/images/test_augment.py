"""The augmented view and its parts; parity with timm is in tests/parity."""

import numpy as np
import pytest
from PIL import Image

from fact_jax.images import pipeline
from fact_jax.images.augment import augment, crop_box
from fact_jax.images.randaugment import OPERATIONS, rand_augment


def noise(width=40, height=30, seed=0):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 5), -(-width // 5), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(5, 0).repeat(5, 1)[:height, :width])


def test_crops_have_the_areas_and_ratios_of_the_source():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 300, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (400, 300)
    width, height = right - left, bottom - top
    area, ratio = width * height / 120000, width / height
    assert 0.079 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35
    squares = np.array([crop_box(400, 400, rng) for _ in range(4000)])
    ratio = (squares[:, 2] - squares[:, 0]) / (squares[:, 3] - squares[:, 1])
    assert np.median(ratio) == pytest.approx(1, abs=0.02)  # log-uniform
    assert len(set(map(tuple, boxes.tolist()))) > 3500


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((900, 60), (410, 0, 490, 60)),  # 4/3 of its height
        ((30, 900), (0, 430, 30, 470)),  # 3/4
    ],
)
def test_a_thin_image_is_cropped_at_its_centre(size, box):
    rng = np.random.default_rng(3)
    found = [crop_box(*size, rng) for _ in range(200)]
    assert found.count(box) > 20
    for left, top, right, bottom in found:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_a_view_is_a_function_of_the_generators_seed():
    image = noise()
    views = [augment(image, 24, np.random.default_rng(seed)) for seed in range(40)]
    assert {(v.shape, v.dtype) for v in views} == {((24, 24, 3), np.dtype("uint8"))}
    np.testing.assert_array_equal(views[7], augment(image, 24, np.random.default_rng(7)))
    assert len({v.tobytes() for v in views}) == 40


def test_half_of_the_views_are_flipped(monkeypatch):
    from fact_jax.images import augment as module

    monkeypatch.setattr(module, "crop_box", lambda w, h, rng: (0, 0, w, h))
    monkeypatch.setattr(module, "rand_augment", lambda image, rng: image)
    pixels = np.arange(64, dtype=np.uint8)[None, :, None] * np.ones((64, 1, 3), np.uint8)
    image, rng = Image.fromarray(pixels), np.random.default_rng(0)
    views = [augment(image, 64, rng) for _ in range(400)]
    flipped = [np.array_equal(v, pixels[:, ::-1]) for v in views]
    assert all(f or np.array_equal(v, pixels) for f, v in zip(flipped, views, strict=True))
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_grows_with_its_magnitude(name):
    operation, image = OPERATIONS[name], noise(seed=1)
    if name.startswith(("Translate", "Shear", "Rotate")):  # the farther, the more another colour
        y, x = np.mgrid[:60, :40].astype(np.uint8)
        image = Image.fromarray(np.stack([3 * x, 2 * y, x + y], axis=-1))
    before = np.asarray(image).astype(int)

    def change(magnitude):
        changed = operation.apply(image, operation.level(magnitude))
        assert (changed.size, changed.mode) == (image.size, "RGB")
        return np.abs(np.asarray(changed).astype(int) - before).mean()

    if name in ("AutoContrast", "Equalize", "Invert"):  # of one strength
        assert change(0) == change(10)
    else:
        assert change(1) < change(5) < change(10)
    if name not in ("AutoContrast", "Equalize", "Invert", "PosterizeIncreasing"):
        assert change(0) == 0
    if operation.signed:
        other = operation.apply(image, -operation.level(9.0))
        assert np.any(np.asarray(other) != np.asarray(operation.apply(image, operation.level(9.0))))


def test_operations_are_drawn_alike_and_half_are_skipped(monkeypatch):
    from fact_jax.images import randaugment as module

    seen = []

    def watched(name):
        def apply(image, level):
            seen.append((name, level))
            return image

        operation = OPERATIONS[name]
        return module.Operation(apply, operation.level, operation.signed)

    monkeypatch.setattr(module, "OPERATIONS", {name: watched(name) for name in OPERATIONS})
    rng = np.random.default_rng(0)
    for _ in range(6000):
        rand_augment(noise(5, 5), rng)
    assert 5800 < len(seen) < 6200  # half of 2 x 6,000
    names, counts = np.unique([name for name, _ in seen], return_counts=True)
    assert set(names) == set(OPERATIONS)
    assert counts.min() > 330  # of 400 expected
    assert counts.max() < 470
    degrees = np.array([level for name, level in seen if name == "Rotate"])
    assert np.abs(degrees).mean() == pytest.approx(27, abs=0.3)  # magnitude 9 of 10 is 27 degrees
    assert np.abs(degrees).std() == pytest.approx(1.4, abs=0.25)  # 1.5, less what is clipped
    assert np.abs(degrees).max() == 30
    assert 0.4 < (degrees > 0).mean() < 0.6


@pytest.mark.parametrize(("size", "full", "start"), [(224, 256, 16), (98, 112, 7), (32, 36, 2)])
def test_the_test_view_is_a_centre_crop_of_a_larger_square(size, full, start):
    image = noise(300, 200)
    larger = np.asarray(image.resize((full, full), Image.Resampling.BICUBIC))
    expected = larger[start : start + size, start : start + size]
    np.testing.assert_array_equal(pipeline.to_square(image, size, "crop"), expected)
    assert pipeline.to_square(image, size).shape == (size, size, 3)
