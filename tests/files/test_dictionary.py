"""Dictionaries beside factor files, and packs of many factor files."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from written_factors import assert_same, trainable

from fact_jax import FacTTK, FacTTT, LoRA, UserError, load_factors, load_pack
from fact_jax.algebra.quantise import Bits
from fact_jax.files import pack as pack_module
from fact_jax.files.dictionary import Dictionary, read_dictionary
from fact_jax.files.factors import to_bytes
from fact_jax.files.pack import Pack, pack_files
from fact_jax.tuning import MetaTTTasks

METHODS = [FacTTT(4, 2.0), FacTTK(3, 0.5), FacTTK(3, 0.5, "formula")]
METHODS += [MetaTTTasks(3, 0.5), MetaTTTasks(2, heads=True)]
WEIGHTS = {"variant": "tiny", "weights_sha256": "a" * 64}


def shared_tasks(folder, method, config, count=2, bits=None):
    """Trained numbers of tasks in files of a folder that share a dictionary."""
    trees = [trainable(method, config, 3 + t, seed=t) for t in range(count)]
    dictionary = Dictionary.of(method, trees[0]["factors"], config, WEIGHTS)
    (folder / dictionary.file_name).write_bytes(dictionary.content)
    for t, tree in enumerate(trees):
        tree["factors"] |= dictionary.factors
        metadata = {**WEIGHTS, "task": f"task{t}", "class_names": [f"c{i}" for i in range(3 + t)]}
        content = to_bytes(method, tree, config, metadata, bits, dictionary)
        (folder / f"task{t}.safetensors").write_bytes(content)
    return trees, dictionary


@pytest.mark.parametrize("method", METHODS)
def test_a_file_has_the_cores_alone_and_is_read_with_its_dictionary(tmp_path, small_config, method):
    trees, dictionary = shared_tasks(tmp_path, method, small_config)
    for t, tree in enumerate(trees):
        path = tmp_path / f"task{t}.safetensors"
        stored = load_file(path)
        (core,) = tree["factors"].keys() - dictionary.factors.keys()
        assert stored.keys() == {f"factors/{core}", "head/kernel", "head/bias"}
        task = load_factors(path)
        assert task.method == method
        assert task.dictionary.checksum == dictionary.checksum == task.metadata["dictionary"]
        assert_same(task, {**tree, "factors": {k: tree["factors"][k] for k in task.factors}})


def test_a_small_file_leaves_the_dictionary_as_it_is(tmp_path, small_config):
    method = FacTTK(3)
    trees, dictionary = shared_tasks(tmp_path, method, small_config, bits=Bits(4, 1))
    task = load_factors(tmp_path / "task1.safetensors")
    np.testing.assert_array_equal(task.factors["U"], dictionary.factors["U"])
    assert 0 < np.abs(task.factors["P"] - trees[1]["factors"]["P"]).max() < 1
    assert load_file(tmp_path / "task1.safetensors").keys() == {"packed"}


def test_a_dictionary_that_is_missing_or_another_one_is_named(tmp_path, small_config):
    _, dictionary = shared_tasks(tmp_path, FacTTT(2), small_config)
    path, beside = tmp_path / "task0.safetensors", tmp_path / dictionary.file_name
    other = Dictionary.of(
        FacTTT(2), trainable(FacTTT(2), small_config, seed=5)["factors"], small_config, WEIGHTS
    )
    beside.write_bytes(other.content)
    with pytest.raises(UserError, match=f"{beside.name} is another dictionary than its name says"):
        load_factors(path)
    beside.write_bytes(dictionary.content[:-9])
    with pytest.raises(UserError, match=f"{beside.name} is not a dictionary of fact-jax"):
        load_factors(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    beside.rename(elsewhere / beside.name)
    beside.symlink_to(elsewhere / beside.name)
    with pytest.raises(UserError, match="leads out of its folder"):
        load_factors(path)
    beside.unlink()
    with pytest.raises(UserError, match=f"{beside.name}, which is not beside it"):
        load_factors(path)
    content = path.read_bytes()
    escaped = content.replace(dictionary.checksum.encode(), b"../../../secrets")
    path.write_bytes(escaped)
    with pytest.raises(UserError, match="expected 16 digits"):
        load_factors(path)


def test_a_dictionary_of_other_settings_another_vit_or_other_weights_is_refused(
    tmp_path, small_config
):
    _, dictionary = shared_tasks(tmp_path, FacTTK(3), small_config)
    dictionary = read_dictionary(tmp_path / dictionary.file_name)
    dictionary.check("x", FacTTK(3, 7.0), small_config, "a" * 64)
    for method, config, weights, words in [
        (FacTTK(3, mlp_cores="formula"), small_config, None, "the same settings"),
        (FacTTT(3), small_config, None, "the same settings"),
        (FacTTK(3), small_config.replace(depth=small_config.depth + 1), None, "a ViT with depth"),
        (FacTTK(3), small_config.replace(num_heads=1), None, "a ViT with num_heads"),
        (FacTTK(3), small_config, "b" * 64, "learnt on other weights"),
    ]:
        with pytest.raises(UserError, match=words):
            dictionary.check("x", method, config, weights)


def test_a_file_of_a_method_without_shared_factors_has_no_dictionary(tmp_path, small_config):
    tree = trainable(LoRA(2), small_config)
    metadata = {"dictionary": "0" * 16, "format_version": 2}
    (tmp_path / "a.safetensors").write_bytes(to_bytes(LoRA(2), tree, small_config, metadata))
    with pytest.raises(UserError, match="LoRA has no factors that tasks share"):
        load_factors(tmp_path / "a.safetensors")


def test_a_copy_of_a_hub_s_repository_is_read_through_its_links(tmp_path, small_config):
    """There, each file is a link into one folder, and the folder of the links holds no file."""
    _, dictionary = shared_tasks(tmp_path, FacTTT(2), small_config)
    (tmp_path / dictionary.file_name).write_bytes(dictionary.content)
    blobs, copy = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    for place in (blobs, copy):
        place.mkdir(parents=True)
    for i, name in enumerate(("task0.safetensors", dictionary.file_name)):
        (tmp_path / name).rename(blobs / str(i))
        (copy / name).symlink_to(Path("../../blobs") / str(i))
    assert load_factors(copy / "task0.safetensors").dictionary.checksum == dictionary.checksum


@pytest.fixture
def folder(tmp_path, small_config):
    """Files with two dictionaries, with none, in float32 and at few bits."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, method, bits in [("tk", FacTTK(3), Bits(4, 1)), ("tt", FacTTT(2), None)]:
        shared_tasks(folder, method, small_config, 2, bits)
        for path in folder.glob("task*"):
            path.rename(folder / f"{name}{path.name}")
    for name, bits in {"lora": None, "loraé": Bits(2, 1)}.items():
        tree = trainable(LoRA(2), small_config)
        content = to_bytes(LoRA(2), tree, small_config, WEIGHTS, bits)
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def test_a_pack_gives_back_its_tasks_and_its_files_byte_by_byte(tmp_path, folder):
    files = sorted(folder.glob("*.safetensors"))
    path = tmp_path / "all.pack"
    path.write_bytes(pack_files(files))
    tasks = load_pack(path)
    assert list(tasks) == sorted(p.stem for p in files)
    for p in files:
        wanted, task = load_factors(p), tasks[p.stem]
        assert task.method == wanted.method
        assert task.metadata == wanted.metadata
        jax.tree.map(np.testing.assert_array_equal, task.factors, wanted.factors)
        jax.tree.map(np.testing.assert_array_equal, task.head, wanted.head)
    with Pack(path) as pack:
        assert {p.stem: p.read_bytes() for p in files} == {n: pack.file(n) for n in pack.names}
        contents = {d.file_name: d.content for d in pack.dictionaries}
    assert contents == {p.name: p.read_bytes() for p in folder.glob("*.dictionary")}
    assert len(contents) == 2


def test_entries_that_only_look_alike_come_back_as_they_were(tmp_path, small_config):
    """1, 1.0 and true are equal in Python; the order of a dict is text, too."""
    tree, stated = trainable(FacTTT(2), small_config, 3), [True, 1, {"a": 1, "b": 2}]
    stated.append({"b": 2, "a": 1})
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path, entry, scale in zip(files, stated, (1, 1.0, 1, 1.0), strict=True):
        metadata = {**WEIGHTS, "more": entry}
        path.write_bytes(to_bytes(FacTTT(2, scale), tree, small_config, metadata))
    (tmp_path / "all.pack").write_bytes(pack_files(files))
    with Pack(tmp_path / "all.pack") as pack:
        assert {p.stem: p.read_bytes() for p in files} == {n: pack.file(n) for n in pack.names}


def test_a_name_that_is_not_text_is_refused(tmp_path, small_config):
    path = tmp_path / "caf\udce9.safetensors"
    path.write_bytes(to_bytes(FacTTT(2), trainable(FacTTT(2), small_config, 3), small_config, {}))
    with pytest.raises(UserError, match="a name that a pack cannot hold"):
        pack_files([path])


@pytest.mark.parametrize(
    ("limit", "words"), [("MAX_TENSORS", "tensors"), ("MAX_METADATA", "characters of metadata")]
)
def test_a_pack_that_nothing_could_read_is_not_written(folder, monkeypatch, limit, words):
    monkeypatch.setattr(pack_module, limit, 9)
    with pytest.raises(UserError, match=f"6 tasks have .* {words}, and a pack has at most 9"):
        pack_files(sorted(folder.glob("*.safetensors")))


def test_adding_a_task_leaves_the_others_as_they_are_and_equal_entries_are_there_once(
    tmp_path, small_config
):
    shared_tasks(tmp_path, FacTTK(3), small_config, 5, Bits(4, 1))
    files = sorted(tmp_path.glob("task*.safetensors"))
    few, many = (tmp_path / f"{n}.pack" for n in (3, 5))
    few.write_bytes(pack_files(files[:3]))
    many.write_bytes(pack_files(files))
    before, after = load_file(few), load_file(many)
    assert before.keys() < after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    sizes = [p.stat().st_size for p in files]
    assert many.stat().st_size < sum(sizes)  # with the dictionary
    with pytest.raises(UserError, match="Two factor files have the name 'task0'"):
        pack_files([files[0], files[0]])


def test_a_pack_that_is_damaged_or_something_else_is_refused(tmp_path, folder):
    path = tmp_path / "all.pack"
    content = pack_files(sorted(folder.glob("*.safetensors")))
    with pytest.raises(UserError, match=r"Pack .*all.pack does not exist"):
        load_pack(path)
    for broken in (content[:-20], b"", (folder / "lora.safetensors").read_bytes()):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"all.pack is not a pack of fact-jax"):
            load_pack(path)
    path.write_bytes(content)
    with Pack(path) as pack, pytest.raises(UserError, match="has no task 'nobody' among its 6"):
        pack.task("nobody")


def test_a_pack_whose_dictionary_was_changed_is_refused(tmp_path, folder):
    path = tmp_path / "all.pack"
    content = pack_files(sorted(folder.glob("tt*.safetensors")))
    number = np.float32(load_factors(folder / "tttask0.safetensors").factors["U"][0, 0]).tobytes()
    assert content.count(number) == 1
    path.write_bytes(content.replace(number, np.float32(0.5).tobytes()))
    with pytest.raises(UserError, match="all.pack is not a pack .*is another one"):
        load_pack(path)
