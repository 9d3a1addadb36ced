"""The table of tasks: names, split strings on the true split sizes, label formulas, versions."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fact_jax.data import VTAB, DataSettings, open_task
from fact_jax.data.sources import prepare
from fact_jax.data.sources.tfds import check_features
from fact_jax.data.tasks import make_splits
from fact_jax.errors import UserError

SIZES = json.loads(Path(__file__).with_name("split_sizes.json").read_text())


def write_metadata(builder, sizes, num_shards=3):
    """Writes the file that TFDS leaves beside prepared records, with these split sizes."""
    import tensorflow_datasets as tfds

    splits = []
    for name, size in sizes.items():
        shards = [len(part) for part in np.array_split(np.arange(size), num_shards)]
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=builder.name,
            split=name,
            filetype_suffix="tfrecord",
        )
        info = {"name": name, "shard_lengths": shards, "num_bytes": size}
        splits.append(tfds.core.SplitInfo(**info, filename_template=template))
    builder.info.set_splits(tfds.core.SplitDict(splits))
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with the metadata of all 16 data sets, in their true sizes."""
    data_dir = tmp_path_factory.mktemp("metadata")
    for task in {task.builder: task for task in VTAB.values()}.values():
        found = prepare.find_builder(task, str(data_dir))
        assert not found.ready
        write_metadata(found.builder, SIZES[task.builder])
    return str(data_dir)


@pytest.mark.parametrize("name", VTAB)
def test_splits_have_the_published_sizes_and_share_no_example(name, prepared):
    """open_task checks 800, 200, 1000 and the test size by TFDS's own arithmetic."""
    data = open_task(VTAB[name], DataSettings(data_dir=prepared))
    splits = data.source.builder.info.splits
    found = {split: splits[string].num_examples for split, string in data.task.splits.items()}
    expected = {"train800": 800, "val200": 200, "train800val200": 1000}
    assert found == expected | {"test": VTAB[name].test_size}
    rows = [
        (part.filename, part.skip + i)
        for split in ("train800", "val200", "test")
        for part in splits[VTAB[name].splits[split]].file_instructions
        for i in range(part.take if part.take >= 0 else part.num_examples)
    ]
    assert len(set(rows)) == len(rows) == 1000 + VTAB[name].test_size


def test_data_of_another_size_are_refused(tmp_path):
    found = prepare.find_builder(VTAB["dtd"], str(tmp_path))
    write_metadata(found.builder, {**SIZES["dtd"], "test": 3000})
    with pytest.raises(UserError, match="split test .* has 3000 examples, expected 1880"):
        open_task(VTAB["dtd"], DataSettings(data_dir=str(tmp_path)))


def test_an_older_version_on_disk_that_was_asked_for_is_preferred(tmp_path):
    """Pets 3.2.0, prepared by an older TFDS: read, where today's TFDS would prepare 4.0.0."""
    task = VTAB["oxford_iiit_pet"]
    new = prepare.find_builder(task, str(tmp_path))
    assert (new.version, new.request, new.ready) == ("4.0.0", "4.*.*", False)
    write_metadata(new.builder, SIZES["oxford_iiit_pet"])
    data = open_task(task, DataSettings(data_dir=str(tmp_path)))
    assert data.provenance["mapped"]
    assert "4.0.0 repaired" in data.provenance["note"]

    folder = tmp_path / "oxford_iiit_pet"
    old = folder / "3.2.0"
    (folder / "4.0.0").rename(old)
    text = (old / "dataset_info.json").read_text()
    assert '"4.0.0"' in text
    (old / "dataset_info.json").write_text(text.replace('"4.0.0"', '"3.2.0"'))
    data = open_task(task, DataSettings(data_dir=str(tmp_path)))
    assert data.provenance["used_version"] == "3.2.0"
    assert not data.provenance["mapped"]


def test_refused_version_names_what_tfds_said():
    task = dataclasses.replace(VTAB["dtd"], versions="9.*.*")
    with pytest.raises(UserError, match=r"matches 9\.\*\.\*.*only: 3\.0\.1"):
        prepare.find_builder(task, "/none")
    with pytest.raises(UserError, match="no version of 'no_such_set'"):
        prepare.find_builder(dataclasses.replace(task, builder="no_such_set"), "/none")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_broken_metadata_are_refused_with_their_place(name, tmp_path):
    found = prepare.find_builder(VTAB["dtd"], str(tmp_path))
    write_metadata(found.builder, SIZES["dtd"])
    path = tmp_path / "dtd" / "3.0.1" / name
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match="of dtd cannot be opened") as error:
        open_task(VTAB["dtd"], DataSettings(data_dir=str(tmp_path)))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "features", "words"),
    [
        ("dtd", {"label": 46}, "class count does not match: dtd/3.0.1 declares 47"),
        ("kitti", {"objects/depth": None}, "'objects/depth', which kitti/3.3.0 does not have"),
    ],
)
def test_features_that_do_not_match_are_refused(name, features, words, prepared):
    task = dataclasses.replace(VTAB[name], label_features=features)
    with pytest.raises(UserError, match=words):
        check_features(task, prepare.find_builder(task, prepared).builder)


def test_table_has_the_19_tasks_in_the_published_order():
    names = (
        "cifar caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon eurosat "
        "resisc45 diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc "
        "dsprites_ori smallnorb_azi smallnorb_ele"
    )
    assert " ".join(VTAB) == names
    groups = [task.group for task in VTAB.values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
    assert [task.num_classes for task in VTAB.values()] == (
        [100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]
    )
    assert [task.name for task in VTAB.values()] == list(VTAB)


def clevr(*depths):
    coords = np.array([[1, 2, depth] for depth in depths], np.float32)
    return {"objects": {"pixel_coords": coords}}


def test_clevr_counts_start_at_three():
    counts = [VTAB["clevr_count"].label(clevr(*range(count))) for count in range(3, 11)]
    assert counts == list(range(8))


@pytest.mark.parametrize(
    ("depth", "label"),
    [
        *((0.1, 0), (7.9, 0), (8.0, 0), (8.01, 1), (8.5, 1), (8.51, 2), (9.0, 2), (9.01, 3)),
        *((9.5, 3), (9.51, 4), (10.0, 4), (10.01, 5), (14.0, 5), (100.0, 5)),
        *((0.0, -1), (100.5, 6)),  # no classes
    ],
)
def test_clevr_distance_thresholds(depth, label):
    assert VTAB["clevr_dist"].label(clevr(200.0, depth, 300.0)) == label


CAR, VAN, TRUCK, PEDESTRIAN, TRAM = 0, 1, 2, 3, 6


@pytest.mark.parametrize(
    ("objects", "label"),
    [
        ([], 3),
        ([(PEDESTRIAN, 2.0), (TRAM, 5.0)], 3),
        ([(PEDESTRIAN, 2.0), (CAR, 30.0)], 2),
        ([(CAR, 8.0)], 0),
        ([(VAN, 8.01)], 1),
        ([(TRUCK, 20.0)], 1),
        ([(TRUCK, 20.01), (CAR, 90.0)], 2),
        ([(CAR, -4.0)], 0),
        ([(CAR, 999.0)], 2),
    ],
)
def test_kitti_nearest_vehicle(objects, label):
    example = {
        "objects": {
            "type": np.array([kind for kind, _ in objects], np.int64),
            "location": np.array([[0, 0, z] for _, z in objects], np.float32).reshape(-1, 3),
        }
    }
    assert VTAB["kitti"].label(example) == label


def test_dsprites_bins():
    """40 orientations in 16 unequal bins of 2.5, 32 positions in bins of 2."""
    orientations = [VTAB["dsprites_ori"].label({"label_orientation": i}) for i in range(40)]
    assert orientations[:9] == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert orientations[37:] == [14, 15, 15]
    assert sorted(np.bincount(orientations).tolist()) == [2] * 8 + [3] * 8
    positions = [VTAB["dsprites_loc"].label({"label_x_position": i}) for i in range(32)]
    assert positions == [i // 2 for i in range(32)]


def random_example(feature, rng):
    """An example that the feature can encode; classes are drawn, sequences have 3 to 6 elements."""
    import tensorflow_datasets as tfds

    match feature:
        case tfds.features.Image():
            height, width, channels = (n or 20 for n in feature.shape)
            return np.full((height, width, channels), rng.integers(0, 256), np.uint8)
        case tfds.features.ClassLabel():
            return int(rng.integers(feature.num_classes))
        case tfds.features.Text():
            return "text"
        case tfds.features.BBoxFeature():
            return tfds.features.BBox(0.1, 0.2, 0.3, 0.4)
        case tfds.features.Sequence():
            return [random_example(feature.feature, rng) for _ in range(rng.integers(3, 7))]
        case tfds.features.FeaturesDict():
            return {name: random_example(part, rng) for name, part in feature.items()}
    return rng.uniform(5, 15, feature.shape).astype(feature.np_dtype)


PLAIN = {"smallnorb_azi": "label_azimuth", "smallnorb_ele": "label_elevation"}
FORMULAS = ("clevr_count", "clevr_dist", "kitti", "dsprites_loc", "dsprites_ori")  # tested above


def expected_label(name, example):
    """The label, of the objects as TFDS gives them: an array for each of their features."""
    if name not in FORMULAS:
        return example[PLAIN.get(name, "label")]
    objects = example.get("objects", [])
    arrays = {key: np.array([o[key] for o in objects]) for key in (objects[0] if objects else ())}
    return VTAB[name].label({**example, "objects": arrays})


@pytest.mark.parametrize("name", VTAB)
def test_labels_and_pixels_of_examples_with_the_builders_true_features(name, tmp_path, monkeypatch):
    """Examples of the builder's features go through its records and come back with the label."""
    rng = np.random.default_rng(list(VTAB).index(name))
    splits = make_splits("train[4:6]", "train[6:]", train="train[:4]")
    sizes = {"train800": 4, "val200": 2, "train800val200": 6, "test": 4}
    task = dataclasses.replace(VTAB[name], splits=splits, sizes=sizes)
    builder = prepare.find_builder(task, str(tmp_path)).builder
    examples = [random_example(builder.info.features, rng) for _ in range(10)]
    for i, example in enumerate(examples):  # a grey level of its own for each
        example["image"] = np.full_like(example["image"], i % 2 if task.binary else 20 * i)
    # Only the reading of the source files is replaced; features and records are the builder's.
    monkeypatch.setattr(
        type(builder),
        "_split_generators",
        lambda self, manager: {"train": enumerate(examples)},
    )
    for path in task.manual:
        (prepare.manual_dir(builder) / path).mkdir(parents=True)
    data = open_task(task, DataSettings(data_dir=str(tmp_path), image_size=5, download=True))
    expected = sorted(
        (255 * (i % 2) if task.binary else 20 * i, expected_label(name, example))
        for i, example in enumerate(examples)
    )
    found = []
    for split in ("train800", "val200", "test"):
        batch = data.load(split)
        assert batch.images.shape == (task.sizes[split], 5, 5, 3)
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == np.int32
        levels = batch.images.reshape(len(batch.labels), -1)
        # sun397's and retinopathy's features may store JPEG: a flat grey survives within 1.
        assert np.ptp(levels.astype(int), axis=1).max() <= 1
        found += [(int(g), int(n)) for g, n in zip(levels[:, 0], batch.labels, strict=True)]
    for (level, label), (true_level, true_label) in zip(sorted(found), expected, strict=True):
        assert abs(level - true_level) <= 1
        assert label == true_label
