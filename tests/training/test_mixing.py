"""Mixup, cutmix, smoothing and erasing inside `jit`; parity with timm is in tests/parity."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fact_jax.training import mixing

B, S, C, PADDED = 6, 20, 4, 7


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(B, S, S, 3)).astype(np.float32)
    return images, np.array([0, 1, 2, 3, 1, 2])


ALL = np.ones(B, bool)


def soft_and_mixed(key, images, labels, valid, number, mixup=0.8, cutmix=1.0, smoothing=0.1):
    targets = mixing.soft_targets(labels, valid, number, PADDED, smoothing)
    return mixing.mix(key, images, targets, valid, mixup=mixup, cutmix=cutmix)


@cache
def compiled_mix(**settings):
    return jax.jit(partial(soft_and_mixed, **settings))


def mixed(batch, seed, valid=ALL, **settings):
    images, labels = batch
    function = compiled_mix(**settings)
    out = function(jax.random.key(seed), images, labels, valid, np.int32(C))
    return tuple(map(np.asarray, out))


def smoothed(labels, smoothing=0.1):
    targets = np.zeros((len(labels), PADDED), np.float32)
    targets[:, :C] = smoothing / C
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


def test_without_mixing_the_targets_are_smoothed_over_the_tasks_own_classes(batch):
    images, targets = mixed(batch, 0, mixup=0, cutmix=0)
    np.testing.assert_array_equal(images, batch[0])
    np.testing.assert_allclose(targets, smoothed(batch[1]), atol=1e-7)
    assert not targets[:, C:].any()
    _, plain = mixed(batch, 0, mixup=0, cutmix=0, smoothing=0.0)
    np.testing.assert_array_equal(plain, np.eye(PADDED)[batch[1]])


@pytest.mark.parametrize("seed", range(2))
def test_mixup_mixes_with_the_batch_reversed(seed, batch):
    images, targets = mixed(batch, seed, cutmix=0)
    own, other = smoothed(batch[1]), smoothed(batch[1][::-1])
    differ = own != other
    lam = ((targets - other)[differ] / (own - other)[differ]).mean()
    assert 0 < lam < 1
    np.testing.assert_allclose(targets, lam * own + (1 - lam) * other, atol=1e-5)
    np.testing.assert_allclose(images, lam * batch[0] + (1 - lam) * batch[0][::-1], atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_takes_a_box_and_weighs_by_its_true_area(seed, batch):
    images, targets = mixed(batch, seed, mixup=0)
    own, other = smoothed(batch[1]), smoothed(batch[1][::-1])
    from_other = (images == batch[0][::-1]).all(axis=-1)
    assert ((images == batch[0]).all(axis=-1) ^ from_other).all()
    box = from_other[0]
    assert (from_other == box).all()  # one box for the batch
    np.testing.assert_array_equal(box, box.any(axis=1)[:, None] & box.any(axis=0)[None])
    for line in (box.any(axis=0), box.any(axis=1)):
        assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)  # in one piece
    lam = 1 - box.mean()
    np.testing.assert_allclose(targets, lam * own + (1 - lam) * other, atol=1e-5)


def test_both_are_drawn_half_of_the_time_with_their_own_distributions():
    keys = jax.random.split(jax.random.key(5), 3000)
    both = jax.jit(jax.vmap(lambda key: mixing.draw(key, 32, 32, 0.8, 1.0)))(keys)
    both = jax.tree.map(np.asarray, both)
    cut = np.isin(both.pixels, (0, 1)).all(axis=(1, 2, 3))
    assert 0.46 < cut.mean() < 0.54
    lam = both.label[~cut]  # Beta(0.8, 0.8): variance 1 / (4 (2 a + 1))
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / (4 * 2.6), rel=0.05)
    np.testing.assert_allclose(both.pixels[~cut, 0, 0, 0], lam)
    # Against numpy's own draws of the same box.
    rng, expected = np.random.default_rng(0), []
    for _ in range(20000):
        half = int(32 * np.sqrt(1 - rng.beta(1.0, 1.0))) // 2
        centre = rng.integers(0, 32, 2)
        low, high = np.clip(centre - half, 0, 32), np.clip(centre + half, 0, 32)
        expected.append(1 - np.prod(high - low) / 32**2)
    own = both.label[cut]
    assert own.mean() == pytest.approx(np.mean(expected), abs=0.02)
    for q in (0.1, 0.25, 0.5, 0.75):
        assert np.quantile(own, q) == pytest.approx(np.quantile(expected, q), abs=0.04)


def test_rows_that_are_not_valid_do_not_reach_the_others(batch):
    """The result is as if the batch held the valid rows alone, wherever they are."""
    images, labels = batch
    for valid in ([1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 1]):
        valid = np.array(valid, bool)
        spoilt = np.where(valid[:, None, None, None], images, np.nan)
        for settings in ({"cutmix": 0}, {"mixup": 0}):
            found, targets = mixed((spoilt, labels), 3, valid, **settings)
            alone = mixed((images[valid], labels[valid]), 3, ALL[valid], **settings)
            np.testing.assert_allclose(found[valid], alone[0], atol=1e-6)
            np.testing.assert_allclose(targets[valid], alone[1], atol=1e-6)
            assert not targets[~valid].any()


def test_a_row_alone_or_in_the_middle_is_not_changed(batch):
    images, labels = batch
    valid = np.array([1, 1, 1, 0, 0, 0], bool)
    found, targets = mixed(batch, 1, valid, cutmix=0)
    np.testing.assert_array_equal(found[1], images[1])
    np.testing.assert_allclose(targets[1], smoothed(labels)[1], atol=1e-6)
    assert np.abs(found[0] - images[0]).max() > 0.1
    none, zeros = mixed(batch, 1, np.zeros(B, bool))
    np.testing.assert_array_equal(none, images)
    assert not zeros.any()


def test_erasing_replaces_one_box_of_some_images_by_noise():
    images = jnp.full((2000, 24, 36, 3), 7.0)
    erased = np.asarray(jax.jit(mixing.erase)(jax.random.key(0), images, 0.25))
    gone = (erased != 7).all(axis=-1)
    assert (gone == (erased != 7).any(axis=-1)).all()
    hit = gone.any(axis=(1, 2))
    assert 0.22 < hit.mean() < 0.28
    rows, columns = gone[hit].any(axis=2), gone[hit].any(axis=1)
    np.testing.assert_array_equal(gone[hit], rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        edges = np.abs(np.diff(np.pad(line.astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
        assert (edges == 2).all()
        assert line[:, 0].any()
        assert line[:, -1].any()
    h, w = rows.sum(axis=1), columns.sum(axis=1)
    area, ratio = h * w / (24 * 36), h / w
    assert 0.01 < area.min() < 0.04
    assert 0.3 < area.max() < 0.36
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert 0.2 < ratio.min() < 0.4
    assert 2.5 < ratio.max() < 5
    noise = erased[hit][gone[hit]]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02  # each channel its own


def test_erasing_follows_its_rate_and_key(batch):
    images, keys = batch[0], [jax.random.key(0), jax.random.key(1)]
    np.testing.assert_array_equal(mixing.erase(keys[0], images, 0.0), images)
    always, other = (np.asarray(mixing.erase(key, images, 1.0)) for key in keys)
    assert (always != images).any(axis=(1, 2, 3)).all()
    assert (always != other).any()
