"""The bank: each image of a batch gets the logits that its own task's Predictor gives."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from devices import on_host_devices
from tried_methods import ALL, EVERYTHING, random_factors
from written_factors import written

from fact_jax import FacTTK, FacTTT, Full, LoRA, UserError, checksum, load_factors, load_vit
from fact_jax.backbone.vit import ViT
from fact_jax.files.dictionary import Dictionary
from fact_jax.files.factors import TrainedTask
from fact_jax.files.folder import write_folder
from fact_jax.files.peft_writing import adapter_files
from fact_jax.serving.bank import Bank
from fact_jax.serving.folders import card_of
from fact_jax.serving.predict import Predictor
from fact_jax.serving.store import UnknownTask
from fact_jax.tuning import Combination, Method, NOAHSubnet

Vit = tuple[ViT, dict]
METHODS: dict[str, Method] = {name: method for name, method in ALL.items() if name != "full"}
METHODS |= {"noah_subnet": NOAHSubnet((2, 1, 0), (0, 2, 1), (1, 0, 2)), "everything": EVERYTHING}
TT, LORA = FacTTT(2, 0.5), LoRA(2, sites="q,fc2")


def trained(
    vit: Vit, method: Method = TT, classes: int = 3, seed: int = 0, **metadata: object
) -> TrainedTask:
    """A task of random factors and a random head."""
    (model, base), rng = vit, np.random.default_rng(seed)
    head = {
        "kernel": rng.normal(size=(model.config.width, classes)).astype("float32"),
        "bias": rng.normal(size=classes).astype("float32"),
    }
    factors = random_factors(method, model.config, base, seed)
    return TrainedTask(method, factors, head, {"vit": {}, **metadata}, Path(f"{seed}.safetensors"))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(count, 16, 16, 3)).astype("float32")


def alone(vit: Vit, tasks: dict[str, TrainedTask], images: np.ndarray, names: list[str]) -> list:
    """Logits of each image from a Predictor of its task."""
    every = {name: Predictor(*vit, tasks[name]).logits(images) for name in set(names)}
    return [every[name][i] for i, name in enumerate(names)]


def assert_close(actual: list, wanted: list, tolerance: float = 3e-5) -> None:
    for a, b in zip(actual, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", METHODS)
def test_two_tasks_of_a_method_in_a_batch(small_vit: Vit, name: str) -> None:
    tasks = {n: trained(small_vit, METHODS[name], 3, seed) for seed, n in enumerate("ab")}
    bank = Bank(*small_vit, capacity=2)
    bank.add_all(tasks)
    images, names = pictures(4), ["b", "a", "a", "b"]
    assert_close(bank.logits(images, names), alone(small_vit, tasks, images, names))


def test_tasks_of_other_kinds_and_numbers_of_classes(small_vit: Vit) -> None:
    """19 tasks in any order, more rows than a batch, scales that differ, two capacities."""
    classes = (10, 100, 102, 47, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)
    scales = (0.1, 1.0, 10.0)
    tasks = {
        f"task {i}": trained(small_vit, FacTTT(2, scales[i % 3]) if i % 2 else LORA, c, i)
        for i, c in enumerate(classes)
    }
    bank = Bank(*small_vit, capacity=4, batch_size=8)
    for name, task in tasks.items():
        bank.add(name, task)
    assert bank.names == tuple(tasks)
    images = pictures(45)
    names = np.random.default_rng(0).choice(list(tasks), len(images)).tolist()
    assert len(set(names)) > 12
    assert_close(bank.logits(images, names), alone(small_vit, tasks, images, names))
    assert bank.logits(images[:0], []) == []


def test_a_thousand_tasks(small_vit: Vit) -> None:
    tasks = {str(i): trained(small_vit, FacTTT(1), 2, i) for i in range(1000)}
    bank = Bank(*small_vit, batch_size=128)
    bank.add_all(tasks)
    names = np.random.default_rng(0).permutation(list(tasks)).tolist()
    images = pictures(len(names))
    logits = bank.logits(images, names)
    chosen = range(0, 1000, 20)
    wanted = [Predictor(*small_vit, tasks[names[i]], 1).logits(images[[i]])[0] for i in chosen]
    assert_close([logits[i] for i in chosen], wanted)
    # Every other row is another task's.
    assert len({x.tobytes() for x in logits}) == 1000


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_an_ensemble_averages_probabilities(small_vit: Vit) -> None:
    """The ensemble has three seeds and another method; batches have two rows."""
    members = [trained(small_vit, TT, 3, seed) for seed in range(3)] + [trained(small_vit, LORA)]
    bank = Bank(*small_vit, batch_size=2)
    bank.add("all", members)
    bank.add("first", members[0])
    images = pictures(3)
    every = [Predictor(*small_vit, member).logits(images) for member in members]
    logits = bank.logits(images, ["all", "first", "all"])
    for i in (0, 2):
        mean = np.mean([softmax(x[i]) for x in every], axis=0)
        np.testing.assert_allclose(np.exp(logits[i]), mean, atol=1e-5)
    assert_close([logits[1]], [every[0][1]])
    assert bank.task("all").num_members == 4


def test_labels_that_do_not_exclude_each_other_have_probabilities_of_their_own(
    small_vit: Vit, tmp_path: Path
) -> None:
    model, base = small_vit
    bank, paths = Bank(*small_vit), [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        written(path, (TT, LORA)[i], model.config, multi_label=True)
    bank.add("one", paths[0])
    bank.add("both", paths)
    images = pictures(1)
    each = [Predictor(*small_vit, load_factors(path)).logits(images)[0] for path in paths]
    p = [1 / (1 + np.exp(-x)) for x in each]
    one, both = bank.predict(np.concatenate([images] * 2), ["one", "both"], topk=7)
    np.testing.assert_allclose(one.probabilities, np.sort(p[0])[::-1], rtol=1e-5)
    np.testing.assert_allclose(both.probabilities, np.sort(np.mean(p, axis=0))[::-1], rtol=1e-5)
    written(tmp_path / "single.safetensors", TT, model.config)
    with pytest.raises(UserError, match="one label an image, and several"):
        bank.add("mixed", [paths[0], tmp_path / "single.safetensors"])


def test_sure_members_of_several_labels_have_finite_logits(small_vit: Vit) -> None:
    bank = Bank(*small_vit)
    members = []
    for seed, logit in enumerate((40.0, 41.0)):
        task = trained(small_vit, TT, seed=seed, multi_label=True)
        head = {"kernel": 0 * task.head["kernel"], "bias": np.array([logit, -logit, 0], "f4")}
        members.append(task._replace(head=head))
    bank.add("sure", members)
    (logits,) = bank.logits(pictures(1), "sure")
    # The odds of the mean: log((s(40) + s(41)) / (s(-40) + s(-41))).
    expected = np.log(2) - np.log(np.exp(-40) + np.exp(-41))
    np.testing.assert_allclose(logits, [expected, -expected, 0], rtol=1e-5, atol=1e-6)


def test_members_prepare_pictures_alike(small_vit: Vit, tmp_path: Path) -> None:
    for name, more in (("a", {"resize": "crop"}), ("b", {})):
        written(tmp_path / name, TT, small_vit[0].config, **more)
    with pytest.raises(UserError, match="resize 'crop' and 'square'"):
        Bank(*small_vit).add("mixed", [tmp_path / "a", tmp_path / "b"])
    for more, words in [
        ({"jpeg_quality": 75}, "jpeg_quality None and 75"),
        ({"normalisation": "inception"}, "normalisation 'imagenet' and 'inception'"),
    ]:
        written(tmp_path / "a", TT, small_vit[0].config, **more)
        with pytest.raises(UserError, match=words):
            Bank(*small_vit).add("mixed", [tmp_path / "b", tmp_path / "a"])
    written(tmp_path / "a", TT, small_vit[0].config, normalisation="imagenet")
    Bank(*small_vit).add("one", [tmp_path / "b", tmp_path / "a"])


def test_predictions_have_the_names_of_classes(small_vit: Vit, tmp_path: Path) -> None:
    model, base = small_vit
    metadata = {"class_names": [f"kind {i}" for i in range(7)], "weights_sha256": checksum(base)}
    tree = written(tmp_path / "a.safetensors", TT, model.config, **metadata)
    bank = Bank(*small_vit)
    bank.add("named", str(tmp_path / "a.safetensors"))
    bank.add("plain", trained(small_vit, LORA, 2))
    images = pictures(2)
    first, second = bank.predict(images, ["named", "plain"], topk=3)
    p = softmax(bank.logits(images, "named")[0])
    assert first.task == "named"
    assert first.classes == tuple(f"kind {i}" for i in np.argsort(-p)[:3])
    np.testing.assert_allclose(first.probabilities, np.sort(p)[::-1][:3], rtol=1e-5)
    assert sorted(second.classes) == ["0", "1"]
    assert second.probabilities.sum() == pytest.approx(1)
    assert bank.task("named").metadata["weights_sha256"] == checksum(base)
    assert len(tree["head"]["bias"]) == 7


def test_adding_replacing_and_removing_compile_nothing(small_vit: Vit, compiled: list) -> None:
    """Not before a stack is full; then only the programs that write and read it."""
    bank, images = Bank(*small_vit, capacity=4, batch_size=4), pictures(4)

    def ask() -> None:
        for rows in range(1, 5):
            bank.logits(images[:rows], [bank.names[i % len(bank.names)] for i in range(rows)])

    bank.add("0", trained(small_vit))
    ask()
    compiled.clear()
    for seed in range(1, 4):
        bank.add(str(seed), trained(small_vit, seed=seed))
        ask()
    for seed in range(6):
        bank.add("0", trained(small_vit, seed=seed))  # replaced
        bank.remove("2")
        bank.add("2", trained(small_vit, seed=seed))
        ask()
    assert compiled == []
    bank.add("4", trained(small_vit, seed=4))
    ask()
    assert compiled
    assert not [name for name in compiled if "features" in name or "logits" in name]


def test_after_a_warm_up_requests_compile_nothing(small_vit: Vit, compiled: list) -> None:
    bank = Bank(*small_vit, capacity=4, batch_size=6)
    tasks = {"a": trained(small_vit), "b": trained(small_vit, LORA, 9), "c": trained(small_vit)}
    bank.add_all(tasks)
    bank.warm_up()
    compiled.clear()
    images = pictures(11)
    for rows in range(1, len(images) + 1):
        bank.logits(images[:rows], ["abc"[i % 3] for i in range(rows)])
    assert compiled == []


DEVICES = """
import jax, numpy as np, test_bank
from fact_jax import ViT, ViTConfig
from fact_jax.backbone.vit import init_base
from fact_jax.serving.bank import Bank

config = ViTConfig(width=24, depth=2, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
vit = ViT(config), init_base(config, jax.random.key(0))
tasks = {str(i): test_bank.trained(vit, seed=i) for i in range(5)}
bank = Bank(*vit, capacity=2, batch_size=8)
bank.add_all(tasks)
names = [str(i % 5) for i in range(11)]
images = test_bank.pictures(11)
test_bank.assert_close(bank.logits(images, names), test_bank.alone(vit, tasks, images, names))
print(max(len(array.sharding.device_set) for array in jax.live_arrays()))
"""


def test_a_batch_is_split_over_devices() -> None:
    environment = on_host_devices(4)
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "4\n"


def test_removed_tasks_are_unknown_and_their_memory_is_given_back(small_vit: Vit) -> None:
    bank = Bank(*small_vit, capacity=2)
    bank.add_all({"a": trained(small_vit), "b": trained(small_vit, LORA)})
    with_both = bank.nbytes
    bank.remove("b")
    assert bank.names == ("a",)
    assert 0 < bank.nbytes.factors < with_both.factors
    for call in (bank.remove, bank.task, lambda name: bank.logits(pictures(1), name)):
        with pytest.raises(UnknownTask, match="no task 'b' among the 1 of this bank: a. Add it"):
            call("b")
    bank.remove("a")
    assert bank.nbytes == (0, 0)


@pytest.mark.parametrize(("dtype", "share", "error"), [("bfloat16", 2, 0.01), ("int8", 4, 0.02)])
def test_stored_in_fewer_bits(small_vit: Vit, dtype: str, share: int, error: float) -> None:
    task = trained(small_vit, FacTTT(4, 0.1), 16)
    images, banks = pictures(5), []
    for stored in ("float32", dtype):
        banks.append(Bank(*small_vit, dtype=stored))
        banks[-1].add("a", task)
    exact, rounded = (np.stack(bank.logits(images, "a")) for bank in banks)
    assert 0 < np.abs(exact - rounded).max() < error * np.abs(exact).max()
    whole, less = (sum(bank.nbytes) for bank in banks)
    assert 0.7 * share < whole / less <= share


def test_a_swap_is_seen_wholly_or_not_at_all(small_vit: Vit) -> None:
    """Two ensembles of another kind each take turns while threads ask and other tasks change."""
    versions = [
        [trained(small_vit, TT, 3, seed) for seed in (0, 1)],
        [trained(small_vit, LORA, 3, 2), trained(small_vit, TT, 3, 3)],
    ]
    other = [trained(small_vit, TT, 3, seed) for seed in (4, 5)]
    bank, images = Bank(*small_vit, capacity=4), pictures(2)
    wanted = []
    for version in versions:
        bank.add("a", version)
        wanted.append(np.stack(bank.logits(images, "a")))
    answers: list[np.ndarray] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(np.stack(bank.logits(images, "a")))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    nearest, swaps, deadline = [], itertools.count(), time.monotonic() + 60
    while (i := next(swaps)) < 60 or (len(set(nearest)) < 2 and time.monotonic() < deadline):
        bank.add("a", versions[i % 2])
        bank.add("b", other[i % 2])
        bank.remove("b")
        nearest = [int(np.argmin([np.abs(a - w).max() for w in wanted])) for a in answers]
    done.set()
    for thread in threads:
        thread.join()
    for answer in answers:
        assert min(np.abs(answer - w).max() for w in wanted) < 1e-5
    assert set(nearest) == {0, 1}


def test_what_a_bank_refuses(small_vit: Vit, tmp_path: Path) -> None:
    model, base = small_vit
    bank = Bank(*small_vit)
    bank.add("a", trained(small_vit))
    refused = {
        "Factor file 0.safetensors holds all weights of a ViT": Full(),
        "cannot share a batch": Combination((("full", Full()), ("lora", LORA))),
    }
    for message, method in refused.items():
        with pytest.raises(UserError, match=message):
            bank.add("b", trained(small_vit, TT)._replace(method=method))
    head = trained(small_vit).head
    refused_tasks = {
        "trained for width 32": trained(small_vit)._replace(metadata={"vit": {"width": 32}}),
        "trained on other weights": trained(small_vit, weights_sha256="0" * 64),
        "'S' has shape": trained(small_vit)._replace(method=FacTTT(3)),
        "kernel has shape": trained(small_vit)._replace(head={**head, "bias": np.zeros(4)}),
        "have 3 and 4 classes": [trained(small_vit), trained(small_vit, TT, 4)],
        "have other class names": [trained(small_vit, class_names=list(n)) for n in ("abc", "abd")],
        "normalisation 'none' and 'imagenet'": [
            trained(small_vit, normalisation=n) for n in ("none", "imagenet")
        ],
        "has no factors": [],
        "of type int": 3,
        "does not exist": tmp_path / "b.safetensors",
    }
    for message, task in refused_tasks.items():
        with pytest.raises(UserError, match=message):
            bank.add("b", task)
    for name in ("", 3):
        with pytest.raises(UserError, match="expected a text"):
            bank.add(name, trained(small_vit))
    assert bank.names == ("a",)
    with pytest.raises(UserError, match="2 names for 3 images"):
        bank.logits(pictures(3), ["a", "a"])
    with pytest.raises(UserError, match="expected float32"):
        bank.logits(pictures(1).astype(np.uint8), ["a"])
    for setting in ({"dtype": "int4"}, {"capacity": 0}, {"batch_size": 1.5}):
        with pytest.raises(UserError, match=f"{min(setting)} is"):
            Bank(model, base, **setting)
    Bank(model, base, any_weights=True).add("a", trained(small_vit, weights_sha256="0" * 64))


def test_tasks_of_two_dictionaries_and_of_none_in_a_batch(small_vit: Vit) -> None:
    """A dictionary is on the device once, and goes with its last task."""
    config, tasks = small_vit[0].config, {}
    for name, method in {"a": FacTTT(2, 0.5), "b": FacTTK(2, 3.0)}.items():
        first = trained(small_vit, method, seed=7)
        dictionary = Dictionary.of(method, first.factors, config, {})
        for seed in range(3):
            task = trained(small_vit, method, seed=seed)
            factors = {**task.factors, **dictionary.factors}
            tasks[f"{name}{seed}"] = task._replace(factors=factors, dictionary=dictionary)
    tasks["alone"] = trained(small_vit, FacTTT(2, 0.5), seed=9)
    bank = Bank(*small_vit, capacity=1)
    bank.add_all(tasks)
    images, names = pictures(14), 2 * ["b1", "alone", "a0", "a2", "b0", "a1", "b2"]
    assert_close(bank.logits(images, names), alone(small_vit, tasks, images, names))
    for name in ("a0", "a1"):
        bank.remove(name)
    assert_close(bank.logits(images[:1], "a2"), alone(small_vit, tasks, images[:1], ["a2"]))
    with_a = bank.nbytes.factors
    bank.remove("a2")
    cores, dictionary = tasks["a2"].factors["S"].size, 2 * config.width * 2
    assert with_a - bank.nbytes.factors == 4 * (dictionary + 3 * (cores + 1))  # with scales


def test_a_peft_adapter_is_a_task_of_a_bank(tmp_path):
    """Beside its own factor file it gives the same logits, as a LoRA of a kind of its own."""
    model, base = load_vit("vit_mini")
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4, 0.1), model.config, class_names=[*"abcdefg"])
    task = load_factors(path)
    files = adapter_files(task, model.config, card_of(task, model.config, "", {}))
    write_folder(tmp_path / "adapter", files)
    bank = Bank(model, base)
    bank.add_all({"file": path, "adapter": tmp_path / "adapter"})
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    ours, theirs = (np.stack(bank.logits(images, name)) for name in ("file", "adapter"))
    np.testing.assert_allclose(theirs, ours, atol=2e-5 * np.abs(ours).max())
    assert bank.task("adapter").classes == tuple("abcdefg")
