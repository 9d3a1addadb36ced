"""Runs that train together: on one device, on several, and in several processes."""

import functools
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_host_devices
from etils import epath
from ml_collections import ConfigDict
from places import ROOT
from rich.console import Console
from safetensors.numpy import load_file

from configs import quickstart
from fact_jax import FacTTT, ViT, ViTConfig, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.cli.local import run_sweep
from fact_jax.sweep.packing import free_programs, group_size, most_per_device, step_bytes
from fact_jax.training.mesh import fetch, make_mesh, put, replicated, stack
from fact_jax.training.run import Training
from fact_jax.training.step import TASKS, TrainStep
from fact_jax.training.trial import Hyper, NonFiniteLoss, Trial, train_set

CONFIG = ViTConfig(width=24, depth=4, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
TPU = json.loads((ROOT / "benchmarks/results/tpu_compile.json").read_text())
METHOD, BATCH = FacTTT(4), 8


@functools.cache
def step_on(mesh):
    return TrainStep(ViT(CONFIG), METHOD, "none", BATCH, mesh)


def numbered(t):
    """Trial t, of 32 or 40 images, and its fresh state."""
    rng = np.random.default_rng(t)
    count = 32 + 8 * (t % 2)
    images = rng.integers(0, 255, (count, 16, 16, 3)).astype(np.uint8)
    split = train_set(images, rng.integers(0, 3, count).astype(np.int32), 3, 40)
    hyper = Hyper(*map(np.float32, (1e-3 * (t + 1), 1e-4, 1.0 + t, 0.1, 0.1)))
    state = step_on(make_mesh(BATCH, jax.devices()[:1])).init(t, 3, 5)
    return Trial(split, hyper, np.int32(t)), state


@functools.cache
def program(num_trials, devices):
    """(the compiled epoch of as many trials on these devices, its mesh, its text)."""
    mesh = make_mesh(BATCH, devices, num_trials)
    program = step_on(mesh).program.lower(*arguments(range(num_trials), mesh)).compile()
    return program, mesh, program.as_text()


def arguments(trials, mesh):
    trials, states = zip(*map(numbered, trials), strict=True)
    base = put(init_base(CONFIG, jax.random.key(0)), replicated(mesh))
    return base, stack(states, mesh), stack(trials, mesh), 3, 5


def one_epoch(trials, devices):
    """(host states and losses [t, ...] of an epoch, the compiled program's text)."""
    epoch, mesh, text = program(len(trials), tuple(devices))
    return fetch(epoch(*arguments(trials, mesh))), text


def farthest(a, b):
    return max(
        float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-3))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def part(out, *rows):
    states, losses = jax.tree.map(lambda x: x[list(rows)], out)
    return states, losses


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="a limit of Linux")
def test_programs_are_forgotten_before_linux_runs_out_of_mappings():
    def mappings():
        return Path("/proc/self/maps").read_bytes().count(b"\n")

    @jax.jit
    def program(x):
        return jnp.sort(jnp.cumsum(jnp.exp(x)) @ jnp.outer(x, x))

    free_programs(most=0)
    before = mappings()
    expected = {n: program(jnp.ones(n)) for n in range(3, 13)}
    full = mappings()
    assert full > before + 10
    free_programs(most=(full + 5_000) / int(Path("/proc/sys/vm/max_map_count").read_text()))
    assert mappings() > (before + full) / 2  # there is room
    free_programs(most=0)
    assert mappings() < (before + full) / 2
    assert all((program(jnp.ones(n)) == out).all() for n, out in expected.items())


def test_an_epoch_takes_the_place_of_the_states_it_is_given():
    """Donation: factors, head and moments are not there twice."""
    mesh = make_mesh(BATCH, jax.devices()[:1])
    base, states, trials, *numbers = arguments([0], mesh)
    new, _ = step_on(mesh).program(base, states, trials, *numbers)
    assert all(x.is_deleted() for x in jax.tree.leaves(states))
    assert not any(x.is_deleted() for x in jax.tree.leaves((base, trials, new)))


def test_a_stack_on_one_device_is_its_trials_alone():
    """Epochs have 4 and 5 steps; the steps past a trial's own leave no trace."""
    together, _ = one_epoch([0, 1, 2], jax.devices()[:1])
    assert (together[1] > 0).sum(axis=1).tolist() == [4, 5, 4]
    assert together[0].moments[0].count.tolist() == [4, 5, 4]
    errors = []
    for t in range(3):
        alone, _ = one_epoch([t], jax.devices()[:1])
        errors.append(farthest(part(together, t), part(alone, 0)))
    print(f"in a stack and alone: {max(errors):.1e} of the largest number of an array")
    assert max(errors) < 2e-4
    assert farthest(part(together, 0), part(together, 1)) > 0.1


EIGHT = """
import jax, numpy as np, re
from fact_jax.training.evaluation import Evaluator, Merged
from fact_jax.training.mesh import put, replicated
from test_trials import CONFIG, METHOD, farthest, init_base, make_mesh, one_epoch, part
devices = jax.devices()
assert len(devices) == 8
collectives = lambda text: set(re.findall("all-reduce|all-gather|all-to-all|permute", text))
errors = {}
def near(name, a, b):
    errors[name] = max(errors.get(name, 0.0), farthest(a, b))
    assert errors[name] < 2e-4, name
eight, text = one_epoch(list(range(8)), devices)
assert not collectives(text), collectives(text)
for t in (0, 5):
    pair, _ = one_epoch([t, t + 1], devices[3:5])
    assert farthest(part(eight, t, t + 1), part(pair, 0, 1)) == 0  # bit for bit
    alone, _ = one_epoch([t], devices[:1])
    spread, text = one_epoch([t], devices)
    assert collectives(text) == {"all-reduce"}
    near("alone on one device", part(alone, 0), part(eight, t))
    near("its batch split over eight", part(spread, 0), part(eight, t))
twice, text = one_epoch(list(range(8)), devices[:4])  # two a device
assert not collectives(text)
both, _ = one_epoch(list(range(4)), devices)  # trial 4 x data 2
near("two a device", twice, eight)
near("four trials, each on two devices", both, part(eight, 0, 1, 2, 3))
images = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3)).astype(np.uint8)
batches = [(images[i : i + 16], np.zeros(len(images[i : i + 16]), np.int32)) for i in (0, 16, 32)]
trainable = jax.tree.map(lambda x: x[0], eight[0].trainable)
base, counts = init_base(CONFIG, jax.random.key(0)), []
for count in (1, 8):  # devices that share the batches of an evaluation
    mesh = make_mesh(16, devices[:count])
    trained = Merged.of(METHOD, CONFIG, *put((base, trainable), replicated(mesh)), 1.0)
    counts.append(Evaluator(CONFIG, "none", 16, mesh).count(trained, 3, batches))
assert abs(counts[0][0] - counts[1][0]) <= 1 and counts[0][1] == counts[1][1] == 40
for name, error in errors.items():
    print(f"one of eight on eight devices, and {name}: {error:.1e} of an array's largest number")
print("equal")
"""


def test_eight_trials_on_eight_devices_never_speak_and_are_bit_equal():
    settings = {"env": on_host_devices(8), "cwd": ROOT / "tests" / "training"}
    command = [sys.executable, "-c", EIGHT]
    out = subprocess.run(command, capture_output=True, text=True, **settings)
    print(out.stdout)
    assert out.stdout.strip().endswith("equal"), out.stderr


def test_a_trial_that_fails_does_not_stop_the_others(tmp_path):
    mesh = make_mesh(BATCH, jax.devices()[:1])
    (bad, good), states = zip(*map(numbered, (0, 1)), strict=True)
    bad = bad._replace(hyper=bad.hyper._replace(scale=np.float32(np.inf)))
    trials, base = stack([bad, good], mesh), init_base(CONFIG, jax.random.key(0))
    step = step_on(mesh)

    def stop(done, losses, accuracies):
        assert np.isfinite(losses).tolist() == [False, True]
        if done == 1:
            raise KeyboardInterrupt

    def run(**more):
        training = Training(
            lambda states, e: step.program(base, states, trials, e, 5),
            epochs=3,
            steps=[4, 5],
            settings=[{"task": "bad"}, {"task": "good"}],
            evaluate=lambda t, trained: 50.0 + t,
            **more,
        )
        return training.run(stack(states, mesh), epath.Path(tmp_path / "c"))

    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=stop)
    out = run()
    assert isinstance(out.errors[0], NonFiniteLoss)
    assert re.search("in epoch 0, .* with task=bad", str(out.errors[0]))
    assert out.errors[1] is None
    assert np.isfinite(out.losses[1]).all()
    assert np.isnan(out.accuracies[0]).all()
    assert out.accuracies[1][-1] == 51.0


def test_groups_fill_the_devices_and_waste_little():
    assert group_size([0, 19], 8, 64, 1) == 8
    assert group_size([95, 19], 8, 64, 1) == 8
    assert group_size([0, 1], 8, 64, 4) == 1  # one run: its batch is split
    assert group_size([0, 19], 1, 64, 1) == 1
    assert group_size([0, 19], 1, 64, 4) == 4
    assert group_size([0, 3], 1, 64, 4) == 3
    assert group_size([0, 16], 16, 64, 4) == 16


def test_groups_are_sized_to_memory():
    config = get_variant("vit_b16").replace(dtype="bfloat16")
    images, base = 1000 * 224 * 224 * 3, 86_000_000 * 4

    def fit(gib, **changes):
        device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": gib * 2**30})
        sizes = {"state_bytes": images, "base_bytes": base}
        return most_per_device(config.replace(**changes), 64, **sizes, device=device)

    assert fit(4) == 1  # never none: the attempt's own error says more
    assert fit(16) <= fit(16, remat="attention") <= fit(16, remat="block")
    assert fit(140) == 4
    (alone,) = (r for r in TPU["results"] if r.get("trials") == r.get("mesh", {}).get("trial") == 8)
    assert step_bytes(config, 64) / 2**30 == pytest.approx(alone["gib_per_chip"]["temporary"], 0.1)


def test_choosing_scales_and_training_with_them_is_one_program_each(tmp_path, compiled, tiny):
    """Candidates on train800 and the final runs on all images, of tasks of different classes."""
    config = quickstart.get_config()
    config.update({"tasks": "digits,location", "methods": "fact_tt", "epochs": 1, **tiny})
    config.update(train_limit=16, eval_limit=8, batch_size=8, eval_batch_size=8)
    config.update(fact_tt=ConfigDict({"rank": 4, "scales": (0.1, 1.0)}))
    results = run_sweep(config, str(tmp_path), Console(quiet=True))
    assert [len(r["selection"]) for r in results] == [2, 2]
    for program in ("epoch", "merged", "predict"):
        assert compiled.count(f"jit({program})") == 1, compiled


SWEEP = """
import sys
import jax
import jax.numpy as jnp
from rich.console import Console
from safetensors.numpy import load_file
from configs import quickstart
from fact_jax import VARIANTS, ViTConfig
from fact_jax.cli import process
from fact_jax.cli.local import run_sweep
from fact_jax.sweep import store

VARIANTS["vit_tiny"] = ViTConfig(24, 3, 3, 96, patch_size=4, image_size=16)
how, weights, workdir = sys.argv[1:]
if how:
    process.join_processes(how)
assert len(jax.devices()) == 8, jax.devices()
if jax.process_index() != 0:
    def refuse(*args):
        raise AssertionError("Only process 0 writes.")
    store.epath.Path.write_bytes = refuse
config = quickstart.get_config()
config.tasks, config.methods, config.epochs, config.seeds = "digits", "fact_tt", 2, (0, 1, 2, 3)
config.batch_size = 32
config.train_limit, config.eval_limit = 64, 100
config.variant, config.image_size, config.weights = "vit_tiny", 16, weights
run_sweep(config, workdir, Console(quiet=True))
"""


def sweep_results(workdir):
    return {p.stem: json.loads(p.read_text()) for p in (workdir / "results").glob("*.json")}


@pytest.mark.slow  # three processes that import, compile and train
def test_two_processes_give_what_one_gives(tmp_path, tiny):
    """Four trials over eight devices, each batch over two: four devices a process."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]

    def start(how, name, devices):
        command = [sys.executable, "-c", SWEEP, how, tiny["weights"], tmp_path / name]
        settings = {"env": on_host_devices(devices), "cwd": ROOT, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **settings)

    processes = [start("", "one", 8)]
    processes += [start(f"localhost:{port},2,{i}", "two", 4) for i in range(2)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    one_process, two_processes = (sweep_results(tmp_path / name) for name in ("one", "two"))
    assert len(one_process) == len(two_processes) == 4
    for name, expected in one_process.items():
        assert expected["group"] == "offline"
        assert expected["stack"] == {"runs": 4, "trials": 4, "mesh": {"trial": 4, "data": 2}}
        for key in ("accuracy", "losses", "num_test", "settings", "stack"):
            assert two_processes[name][key] == expected[key], (name, key)
        files = [tmp_path / n / "factors" / f"{name}.safetensors" for n in ("one", "two")]
        mine, theirs = map(load_file, files)
        for key, value in mine.items():
            np.testing.assert_array_equal(theirs[key], value)


def test_trials_that_learn_factors_together_have_the_mean_of_what_each_would_make_of_them():
    """One step; the second trial has a rate of its own."""
    mesh = make_mesh(BATCH, jax.devices()[:1], 2)
    base, states, trials, number, _ = arguments((0, 1), mesh)
    same = jax.tree.map(lambda x: np.stack([np.asarray(x[0])] * 2), fetch(states))
    same.trainable["factors"]["V"] += 0.1  # or U would have no gradient
    apart, _ = step_on(mesh).epoch(base, same, trials, number, 1)
    step = TrainStep(ViT(CONFIG), METHOD, "none", BATCH, mesh, together=("U", "V"))
    together, _ = step.epoch(base, same, trials, number, 1)
    apart, together = (fetch(states.trainable["factors"]) for states in (apart, together))
    assert np.abs(apart["U"][0] - apart["U"][1]).max() > 1e-5
    for name in ("U", "V"):
        mean = apart[name].mean(axis=0)
        for t in range(2):
            np.testing.assert_allclose(together[name][t], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together["S"], apart["S"], rtol=1e-5, atol=1e-7)


def test_a_trial_without_a_batch_left_has_no_part_in_the_mean():
    mesh = make_mesh(BATCH, jax.devices()[:1], 2)
    base, states, trials, number, _ = arguments((0, 1), mesh)
    step = TrainStep(ViT(CONFIG), METHOD, "none", BATCH, mesh, together=("U", "V"))
    mean = jax.vmap(step._with_means, axis_name=TASKS)(states, np.array([False, True]))
    np.testing.assert_array_equal(
        mean.trainable["factors"]["U"], 2 * [states.trainable["factors"]["U"][1]]
    )
    four, five = (fetch(step.epoch(base, states, trials, number, n)[0]) for n in (4, 5))
    assert np.abs(four.trainable["factors"]["V"] - five.trainable["factors"]["V"]).max() > 1e-6
    np.testing.assert_array_equal(
        five.trainable["factors"]["V"][0], five.trainable["factors"]["V"][1]
    )
    np.testing.assert_array_equal(  # trial 0 has 4 batches
        four.trainable["factors"]["S"][0], five.trainable["factors"]["S"][0]
    )
