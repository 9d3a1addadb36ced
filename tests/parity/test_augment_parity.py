"""The augmented view, mixup, cutmix and erasing against timm's own code, given the same numbers.

timm draws from `random` and `numpy.random`; here it is handed a generator with our seed, so that a
difference in the order, kind or range of the draws shows, too.
"""

from __future__ import annotations

from unittest import mock

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from torch_models import import_timm, nchw

import_timm()

from timm.data import auto_augment, random_erasing, transforms  # noqa: E402
from timm.data import mixup as timm_mixup  # noqa: E402

from fact_jax.images import augment, pipeline  # noqa: E402
from fact_jax.images.randaugment import FILL, OPERATIONS, rand_augment  # noqa: E402
from fact_jax.training import mixing  # noqa: E402


class Numbers:
    """`random` and `numpy.random`, as far as timm uses them, over one generator."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def random(self):
        return self.rng.random()

    def uniform(self, low, high):
        return self.rng.uniform(low, high)

    def gauss(self, mean, std):
        return self.rng.normal(mean, std)

    def randint(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def choice(self, items, count, replace, p):
        assert replace
        assert p is None
        return [items[i] for i in self.rng.integers(len(items), size=count)]


def picture(width=97, height=61, seed=0):
    """Blocks of colour under a gradient: edges for the geometry, all levels for the colours."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3))
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray((pixels + np.arange(width)[None, :, None] % 56).astype(np.uint8))


def hparams(**more):
    """RandAugment's settings in `create_transform(interpolation='bicubic')`."""
    mean = (0.485, 0.456, 0.406)
    fill = tuple(min(255, round(255 * m)) for m in mean)
    assert fill == FILL
    return {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC, **more}


def test_the_operations_are_timms_in_its_order():
    assert list(OPERATIONS) == auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("magnitude", [0.0, 2.0, 4.7, 7.5, 8.6, 9.0, 9.4, 10.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_gives_timms_pixels(name, magnitude):
    operation = OPERATIONS[name]
    for negative in (False, True):
        # timm negates where the draw is above one half.
        drawn = mock.Mock(random=lambda: 0.9 if negative else 0.1)  # noqa: B023
        with mock.patch.object(auto_augment, "random", drawn):
            theirs = auto_augment.AugmentOp(name, 1.0, magnitude, hparams())(picture())
        sign = -1 if negative and operation.signed else 1
        ours = operation.apply(picture(), sign * operation.level(magnitude))
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_rand_augment_gives_timms_pixels():
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", hparams())
    changed = 0
    for seed in range(200):
        numbers, image = Numbers(seed), picture(seed=seed)
        with (
            mock.patch.object(auto_augment, "random", numbers),
            mock.patch.object(auto_augment.np, "random", numbers),
        ):
            expected = np.asarray(theirs(image))
        found = np.asarray(rand_augment(image, np.random.default_rng(seed)))
        np.testing.assert_array_equal(found, expected)
        changed += np.any(found != np.asarray(image))
    assert 100 < changed < 190  # a quarter have both operations skipped


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (500, 375), (300, 20), (20, 300)])
def test_crops_are_timms(size):
    timms = transforms.RandomResizedCropAndInterpolation(
        24, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bicubic"
    )
    image = picture(*size)
    for seed in range(100):
        with mock.patch.object(transforms, "random", Numbers(seed)):
            top, left, height, width = timms.get_params(image, timms.scale, timms.ratio)
            box = augment.crop_box(*size, np.random.default_rng(seed))
        assert box == (left, top, left + width, top + height)
    with mock.patch.object(transforms, "random", Numbers(0)):
        expected = np.asarray(timms(image))
    view = image.crop(augment.crop_box(*size, np.random.default_rng(0)))
    found = np.asarray(view.resize((24, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [224, 98, 32])
def test_the_test_view_is_torchvisions(size):
    """NOAH's `build_transform` for evaluation."""
    from torchvision.transforms import functional

    image, full = picture(301, 207), int((256 / 224) * size)
    expected = functional.center_crop(
        functional.resize(image, [full, full], functional.InterpolationMode.BICUBIC), [size, size]
    )
    np.testing.assert_array_equal(pipeline.to_square(image, size, "crop"), np.asarray(expected))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_batches_are_timms(mixup, cutmix, compare):
    """timm is given the weight and the box that were drawn here."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(8, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 5, 8)
    kinds = set()
    for seed in range(12):
        key = jax.random.key(seed)
        drawn = jax.tree.map(np.asarray, mixing.draw(key, 32, 32, mixup, cutmix))
        own = drawn.pixels[..., 0]
        use_cutmix = bool(np.isin(own, (0, 1)).all())
        kinds.add(use_cutmix)
        theirs = timm_mixup.Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=5)
        theirs._params_per_batch = lambda drawn=drawn, cut=use_cutmix: (float(drawn.label), cut)
        y, x = np.nonzero(own == 0)
        cut = use_cutmix and y.size
        box = (y.min(), y.max() + 1, x.min(), x.max() + 1) if cut else (0, 0, 0, 0)
        with mock.patch.object(timm_mixup, "rand_bbox", return_value=box):
            expected = theirs(nchw(pixels), torch.from_numpy(labels))
        valid = np.ones(8, bool)
        soft = mixing.soft_targets(labels, valid, 5, 7, 0.1)
        found, targets = mixing.mix(key, pixels, soft, valid, mixup=mixup, cutmix=cutmix)
        compare(
            {"images": nchw(np.asarray(found)).numpy(), "targets": np.asarray(targets)[:, :5]},
            {"images": expected[0].numpy(), "targets": expected[1].numpy()},
            1e-6,
        )
    assert kinds == {bool(cutmix)} if not (mixup and cutmix) else {True, False}


def test_boxes_of_cutmix_are_distributed_as_timms():
    rng = np.random.default_rng(0)
    with mock.patch.object(timm_mixup.np, "random", mock.Mock(randint=rng.integers)):
        boxes = map(
            timm_mixup.cutmix_bbox_and_lam, [(3, 32, 32)] * 20000, rng.beta(1.0, 1.0, 20000)
        )
        theirs = np.array([weight for _, weight in boxes])
    keys = jax.random.split(jax.random.key(0), 20000)
    ours = np.asarray(jax.vmap(lambda key: mixing.draw(key, 32, 32, 0.0, 1.0).label)(keys))
    for q in np.linspace(0.05, 0.95, 10):
        assert abs(np.quantile(ours, q) - np.quantile(theirs, q)) < 0.03


def test_erased_boxes_are_distributed_as_timms():
    numbers, blank = Numbers(0), np.full((4000, 24, 36, 3), 9.0, np.float32)
    erasing = random_erasing.RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")
    with mock.patch.object(random_erasing, "random", numbers):
        theirs = erasing(nchw(blank)).numpy().transpose(0, 2, 3, 1)
    ours = np.asarray(mixing.erase(jax.random.key(0), blank, 0.25))

    def summary(erased):
        gone = (erased != 9).all(axis=-1)
        hit = gone.any(axis=(1, 2))
        h, w = gone[hit].any(axis=2).sum(axis=1), gone[hit].any(axis=1).sum(axis=1)
        top, left = gone[hit].any(axis=2).argmax(axis=1), gone[hit].any(axis=1).argmax(axis=1)
        lengths = [np.quantile(v, q) for v in (h, w, top, left) for q in (0.25, 0.5, 0.75, 0.95)]
        values = erased[hit][gone[hit]]
        return np.array(lengths), (hit.mean(), values.mean(), values.std())

    (ours_lengths, ours_rest), (their_lengths, their_rest) = summary(ours), summary(theirs)
    np.testing.assert_allclose(ours_lengths, their_lengths, atol=1.01)
    np.testing.assert_allclose(ours_rest, their_rest, atol=0.03)
