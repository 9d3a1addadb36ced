"""The offline suite as a whole: sizes, splits by identity, balance, pixels; what is drawn."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from fact_jax.data import VTAB, get_task
from fact_jax.data.catalog import GROUPS, expand_groups
from fact_jax.data.offline import bundled, rays, scenes, solids
from fact_jax.data.tables.offline import OFFLINE, OFFLINE_GROUPS
from fact_jax.sweep.plan import task_names

# SHA-256 of all pixels, in the order of the splits: every machine must draw and decode the same.
PIXELS = {
    "offline_digits": "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f",
    "offline_fashion": "3ed04783e3307b3c261ee2f0dd3f59cc750f97498bd336f10a95e60f9aee1e6f",
    "offline_sprites": "b787eeff624561c04d052259060a965a894374ce71b1b43895b336e31022c65e",
    "offline_emoji": "3fe39156157032840d0427c576d8767a0fa89515207a94ccb65f947c64dba0ff",
    "offline_textile": "61ea264da560a7f90c6e8b7f2a8053efc31a55304a3371cdee47dbc198a67c93",
    "offline_script": "d3d79d7b9786b0dcc442bd22510db864332a039dcdf1b74afcd43ae0cf1471b1",
    "offline_scenes": "d299ac7d9ca9ddfffaf5a588d65b90ccbc936dbf7554531512f7663340435131",
    "offline_solids": "d15416debcdaeed8a588a29a94ae74ea7813304a669d3b1b9babf4178798c5fc",
}

# The start of the SHA-256 of a task's labels, a byte each, in the order of the splits.
LABELS = {
    "digits": "8ba4f891220f5e4c",
    "fashion": "13f785f632c47e9d",
    "emoji": "f8a7c1c257521d12",
    "textile": "9305995b46b763fa",
    "script": "2095bababb67e8ae",
    "location": "de47f20c0db14513",
    "orientation": "8fb6a11c3eabb099",
    "count": "d1db0b6c175808c3",
    "distance": "0040f90860a28225",
    "azimuth": "987242858ccc5b23",
}


def _rows(name):
    return [row for split in bundled.splits_of(name).values() for _, row in split]


def test_there_are_ten_tasks_in_three_groups():
    assert len(OFFLINE) == 10
    grouped = [name for names in OFFLINE_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(OFFLINE)
    assert not OFFLINE.keys() & VTAB.keys()


def test_names_of_groups_stand_for_their_tasks_once():
    assert task_names("offline") == list(OFFLINE)
    assert task_names("all") == list(VTAB)
    assert task_names("offline_natural,digits,dtd") == ["digits", "fashion", "emoji", "dtd"]
    assert expand_groups(["natural", "specialized", "structured"]) == list(VTAB)
    assert not GROUPS.keys() & (OFFLINE.keys() | VTAB.keys())
    assert all(get_task(name) for names in GROUPS.values() for name in names)


@pytest.mark.parametrize("name", PIXELS)
def test_pictures_all_differ_and_are_the_same_on_every_machine(name):
    pictures = [row["image"] for row in _rows(name)]
    assert {picture.shape for picture in pictures} == {bundled.SETS[name].shape}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)  # all differ
    assert hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest() == PIXELS[name]


@pytest.mark.parametrize("name", OFFLINE)
def test_labels_are_the_same_on_every_machine(name):
    task = OFFLINE[name]
    labels = bytes(task.label(row) for row in _rows(task.builder))
    assert len(labels) == 1000 + task.test_size
    assert hashlib.sha256(labels).hexdigest()[:16] == LABELS[name]


def test_what_is_stored_is_small():
    files = [path for path in bundled.DIGITS.parent.iterdir() if path.suffix == ".npz"]
    assert len(files) == 5
    assert sum(path.stat().st_size for path in files) < 6_000_000


@pytest.mark.parametrize("path", [bundled.EMOJI, bundled.TEXTILE, bundled.SCRIPT])
def test_no_emoji_no_cloth_and_no_font_is_in_two_splits(path):
    numbers = bundled.identities(path)
    parts = [set(part.tolist()) for part in np.split(numbers, [800, 1000])]
    assert all(len(part) > 5 for part in parts)
    assert sum(map(len, parts)) == len(set(numbers.tolist()))


def test_no_solid_is_in_two_splits():
    pictures = solids.sample((1, 1, 2), seed=3)
    per_kind = len(solids.KINDS) * solids.PICTURES
    parts = np.split([p.solid for p in pictures], [per_kind, 2 * per_kind])
    assert [set(part.tolist()) for part in parts] == [
        set(range(5)),
        set(range(5, 10)),
        set(range(10, 20)),
    ]
    assert len({p.image.tobytes() for p in pictures}) == len(pictures)


@pytest.mark.parametrize("name", OFFLINE)
def test_no_class_is_rare_and_none_is_most_of_the_task(name):
    task = OFFLINE[name]
    splits = bundled.splits_of(task.builder)
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 800, "validation": 200, "test": task.test_size}
    for split in ("train", "test"):
        counts = Counter(task.label(row) for _, row in splits[split])
        assert set(counts) == set(range(task.num_classes))
        assert max(counts.values()) <= len(splits[split]) / 2
        assert min(counts.values()) >= len(splits[split]) / task.num_classes / 3


def test_scenes_show_each_of_their_solids_and_have_the_nearest_one_s_depth():
    """A solid shows if the picture without it differs; depth and class by other formulas."""
    for scene in scenes.sample(3, seed=5):
        place, forward = np.array(scene.view.place), np.array(scene.view.forward)
        np.testing.assert_allclose(np.cross(place, forward), 0, atol=1e-12)
        centres = np.array([(s.x, s.y, s.size) for s in scene.solids])
        depth = ((centres - place) @ forward).min()
        assert scene.nearest == pytest.approx(depth)
        assert scenes.distance_class(scene) == np.digitize(depth, (8, 8.5, 9, 9.5, 10))
        assert len(scene.solids) in range(3, 11)
        for solid in scene.solids:
            others = [other for other in scene.solids if other != solid]
            without = scenes.draw(scene.view, others)[0]
            assert (without != scene.image).any(axis=-1).sum() >= 10


@pytest.mark.parametrize(
    ("meet", "outside"),
    [
        (rays.meet_sphere, lambda p: (p**2).sum(-1) - 1),
        (
            rays.meet_cylinder,
            lambda p: np.maximum((p[..., :2] ** 2).sum(-1) - 1, abs(p[..., 2]) - 1),
        ),
        (rays.meet_cube, lambda p: abs(p).max(-1) - 1),
    ],
)
def test_rays_meet_a_solid_where_they_first_touch_it(meet, outside):
    """Marching along each ray in small steps, an independent way, finds the same places."""
    across = np.linspace(-0.45, 0.45, 9)
    x, y = (a.ravel() for a in np.meshgrid(across, across))
    start = (0.3, -4.0, 3.0)
    bundle = rays.Rays(x + 0.01, np.full_like(x, 0.8), y - 0.6)
    hits = meet(start, bundle, 1.0)
    steps = np.arange(0, 8, 0.002)
    points = np.array(start) + steps[:, None, None] * np.stack(bundle, -1)
    inside = outside(points) <= 0
    assert 10 < np.isfinite(hits.far).sum() < len(x)
    grazing = abs(inside.sum(0)) < 20
    np.testing.assert_array_equal(np.isfinite(hits.far)[~grazing], inside.any(0)[~grazing])
    hit = np.isfinite(hits.far) & ~grazing
    np.testing.assert_allclose(hits.far[hit], steps[inside.argmax(0)][hit], atol=0.003)
    normals = np.stack(hits[1:], -1)[hit]
    np.testing.assert_allclose((normals**2).sum(-1), 1, atol=1e-9)
    assert ((normals * np.stack(bundle, -1)[hit]).sum(-1) < 0).all()  # it faces the ray


def test_a_solid_that_is_turned_shows_another_side():
    boxes = solids.build(2, np.random.RandomState(0))
    view, light = rays.look_from((0.0, -4.0, 3.0)), (0.0, -0.6, 0.8)
    left, right, again = (
        solids.draw(boxes, view, f, light) for f in ((-1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    )
    np.testing.assert_array_equal(right, again)
    np.testing.assert_array_equal(left[:, ::-1] != right, np.zeros_like(right, bool))
