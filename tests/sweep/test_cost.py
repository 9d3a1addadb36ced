"""Dry runs: their text, and that they do nothing."""

import io
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from report_results import result
from rich.console import Console

from configs import quickstart, tt_paper
from fact_jax import UserError, ViT, get_variant
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import features, init_base
from fact_jax.cli import dry_run
from fact_jax.cli.dry_run import show_plan
from fact_jax.sweep import speed as speed_module
from fact_jax.sweep.cost import cell_cost, forward_flops
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.speed import Speed, measure_speed
from fact_jax.sweep.store import Store


def plan(**changes):
    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt", seeds=(0, 1), epochs=5)
    config.update(changes)
    return config, make_plan(config)


@pytest.mark.parametrize("name", ["vit_mini", "vit_ti16"])
def test_flops_of_the_forward_pass_are_xlas(name):
    """Within 3 % of what the compiler counts. Depths of 1 and 2 tell of all others: it counts the
    scanned block once."""
    whole = get_variant(name)
    counts = []
    for depth in (1, 2):
        config = whole.replace(depth=depth)
        base = jax.eval_shape(lambda config=config: init_base(config, jax.random.key(0)))
        images = jax.ShapeDtypeStruct((4, config.image_size, config.image_size, 3), jnp.float32)
        vit = ViT(config)
        program = jax.jit(lambda base, images, vit=vit: features(vit, base, images, None))
        cost = program.lower(base, images).compile().cost_analysis()
        counts.append(cost["flops"] / images.shape[0])
    one, two = counts
    assert forward_flops(whole.replace(depth=1)) == pytest.approx(one, rel=0.03)
    expected = one + (whole.depth - 1) * (two - one)
    assert forward_flops(whole) == pytest.approx(expected, rel=0.03)


def test_trainings_epochs_and_images_are_those_of_the_runner():
    _, (cell, _) = plan(fact_tt=ConfigDict({"rank": 4, "scales": (0.1, 1.0, 10.0)}))
    cost = cell_cost(cell, get_variant("vit_mini"))
    assert cost[:2] == (4, 20)
    assert cost.train_images == 5 * (3 * 800 + 1000)
    assert cost.test_images == 3 * 200 + 797
    _, (cell, _) = plan(train_limit=64, eval_limit=50)
    assert cell_cost(cell, get_variant("vit_mini"))[:4] == (1, 5, 5 * 64, 50)


@pytest.mark.parametrize(("every", "evaluations"), [(10, 1), (5, 1), (2, 3), (1, 5), (0, 1)])
def test_the_papers_protocol_evaluates_in_between_and_at_the_end(every, evaluations):
    _, (cell, _) = plan(protocol="paper", eval_every=every)
    assert cell_cost(cell, get_variant("vit_mini")).test_images == evaluations * 797


def test_a_search_counts_its_supernet_and_every_architecture():
    search = {"population": 6, "parents": 2, "mutations": 2, "crossovers": 1, "generations": 3}
    supernet = {"widths": (1, 2), "supernet_epochs": 7, "supernet_learning_rate": 1e-3}
    _, (cell, _) = plan(methods="noah", noah=ConfigDict(search | supernet | {"limit": 10**6}))
    cost = cell_cost(cell, get_variant("vit_mini"))
    assert cost[:2] == (2, 12)
    assert cost.train_images == 7 * 800 + 5 * 1000
    assert cost.test_images == 3 * 6 * 200 + 797  # each generation is filled up to 6


def test_what_moves_costs_passes():
    def flops(method):
        _, (cell, _) = plan(methods=method, epochs=100, **{method: ConfigDict({})})
        return cell_cost(cell, get_variant("vit_mini")).flops

    trained = 100 * 1000 * forward_flops(get_variant("vit_mini"))
    assert flops("fact_tt") - flops("linear") == pytest.approx(trained)
    assert flops("full") - flops("fact_tt") == pytest.approx(trained)


def test_consistency_full_makes_every_pass_twice():
    def cost(form):
        _, (cell, _) = plan(methods="fact_tt", epochs=100, consistency=form)
        return cell_cost(cell, get_variant("vit_mini")).flops

    trained = 100 * 1000 * forward_flops(get_variant("vit_mini"))
    assert cost("full") - cost("") == pytest.approx(2 * trained)
    assert cost("fast") == cost("lazy") == cost("")


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """Nothing is timed: the machine is said to do 2 TFLOP/s on each of 4 devices."""
    speed = Speed(2e12, 4, "chip", "2 blocks")
    monkeypatch.setattr(dry_run, "measure_speed", mock.Mock(return_value=speed))
    return dry_run.measure_speed


def shown(config, workdir, **more):
    console = Console(record=True, width=150, file=io.StringIO())
    show_plan(config, str(workdir), console, **more)
    return console.export_text()


def test_a_dry_run_needs_no_data_and_no_weights_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = tt_paper.get_config()
    config.data_dir, config.weights = str(tmp_path / "no data"), str(tmp_path / "none.npz")
    text = shown(config, tmp_path / "work")
    assert text.count("to do") == 19
    assert "all: 19 cells" in text
    assert "left: 19 cells" in text
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_the_cells_that_are_asked_for(tmp_path):
    config, (_, second) = plan()
    text = shown(config, tmp_path, only=[second.name])
    assert "1 cell in" in text
    assert second.name in text
    with pytest.raises(UserError, match="--cells: 'foo' is not a cell of this sweep, which has di"):
        shown(config, tmp_path, only=["foo", second.name])


def test_times_are_those_of_this_machine(tmp_path, speed):
    six = ConfigDict({"scales": (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)})
    config, (cell,) = plan(seeds=(0,), epochs=10**5, fact_tt=six)
    text = shown(config, tmp_path)
    minutes = round(cell_cost(cell, get_variant("vit_mini")).flops / 8e12 / 60)
    assert minutes > 60
    assert text.count(f"{minutes // 60} h {minutes % 60:02} min") == 3  # the cell, all, left
    assert "(4 x chip) at 2 TFLOP/s a device, timed just now" in " ".join(text.split())
    config.dtype, config.batch_size = "bfloat16", 48
    shown(config, tmp_path)
    vit, batch_size = speed.call_args.args
    assert (vit.dtype, vit.depth, batch_size) == ("bfloat16", 6, 48)


def test_a_dry_run_does_without_the_device(tmp_path, speed):
    """Another process may hold it; or the cells run on other machines."""
    config, _ = plan(seeds=(0,))
    speed.side_effect = RuntimeError("Unable to initialize backend 'tpu': in use by process 7")
    text = " ".join(shown(config, tmp_path).split())
    assert "hours at 100 TFLOP/s" in text
    assert "Nothing could be timed here: Unable to initialize backend 'tpu': in use" in text
    speed.reset_mock()
    text = " ".join(shown(config, tmp_path, elsewhere="slurm").split())
    assert "Nothing is timed here, since the cells run under slurm." in text
    assert not speed.called


def test_the_speed_is_that_of_two_passes_through_the_first_blocks(monkeypatch):
    monkeypatch.setattr(speed_module, "SECONDS", 0.0)  # of a machine that stands still
    tiny = ViTConfig(width=8, depth=9, num_heads=2, mlp_dim=16, patch_size=8, image_size=16)
    speed = measure_speed(tiny, 5)
    assert (speed.devices, speed.device) == (jax.device_count(), jax.devices()[0].device_kind)
    assert speed.how == "2 blocks, 5 images at a time"
    assert 0 < speed.flops_per_second < 1e18


def test_a_dry_run_says_what_is_done_failed_and_other(tmp_path, speed):
    config, cells = plan(seeds=(0, 1, 2, 3, 4))
    store = Store(tmp_path)
    for cell, seconds, changes in (
        (cells[0], 3600.0, {}),
        (cells[1], 1.0, {"epochs": 1}),  # its time says nothing of these settings
    ):
        content = result(cell.task, cell.method_name, cell.seed, 87.5, factor_file_bytes=0)
        content["seconds"] = {"cell": seconds}
        content["settings"] = {**cell.as_stored, "weights_sha256": "of any weights", **changes}
        store.write(store.factors_path(cell.name), b"")
        store.write_json(store.result_path(cell.name), content)
    store.write_json(store.failure_path(cells[2].name), {"error": "NonFiniteLoss"})
    store.result_path(cells[3].name).write_text("{")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    text = shown(config, tmp_path)
    for cell, words in zip(
        cells,
        (
            ("done: 87.5 %", "1 h 00 min"),
            ("done with other settings", "1 h 00 min"),
            ("failed: NonFiniteLoss",),
            ("to do",),
            ("to do",),
        ),
        strict=True,
    ):
        line = next(x for x in text.splitlines() if cell.name in x and "│" in x)
        assert all(word in line for word in words), line
    assert "left: 3 cells" in text
    assert not speed.called  # the finished cell knows better
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
