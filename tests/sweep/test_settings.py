"""Settings without sense are refused with their range; those that do not act are named."""

import dataclasses
import itertools
import math
import re

import pytest
from ml_collections import ConfigDict

from configs import base, compare, fewshot, linear, quickstart, tt_rank16
from fact_jax import UserError
from fact_jax.cli.overrides import overridden
from fact_jax.ranges import Each, OneOf, OrNone, Real, Whole, setting
from fact_jax.sweep.plan import make_plan, schedule_warning
from fact_jax.sweep.resolution import resolve
from fact_jax.sweep.settings import METHOD_SETTINGS, RUN_SETTINGS, SETTINGS, RunSettings
from fact_jax.training.schedule import highest_share, learning_rate

NAN, INF = math.nan, math.inf


def config_of(changes=(), get_config=quickstart.get_config):
    """A config with settings by their paths, whatever their types."""
    config = get_config()
    for path, value in dict(changes).items():
        *owners, name = path.split(".")
        part = config
        for owner in owners:
            part = part[owner]
        with part.unlocked(), part.ignore_type():
            part[name] = value
    return config


WRONG = {
    "seeds": ((), (-1,), (2**31,), (2**32 + 1,), (0, True), (1.5,), "1", 3),
    "protocol": ("test", ""),
    "variant": ("vit_x",),
    "weights": (3,),
    "gelu": ("y",),
    "dtype": ("x", "float64", ""),
    "remat": ("all",),
    "attention": ("flash",),
    "trials_per_device": (-1, 1.5),
    "tensorboard": ("yes",),
    "loggers": ("tensorbord", ("wandb", "x"), 3),
    "precision": ("low",),
    "data_dir": (1,),
    "data_cache": (1,),
    "download": (1,),
    "mock_data": (0,),
    "skip_damaged": ("no",),
    "shots": ((0,), (1.5,), 1),
    "image_size": (0, -32, 5000, 32.0),
    "resize": ("stretch",),
    "normalisation": ("imagenet21k",),
    "jpeg_quality": (200, 96, -1),
    "epochs": (0, -1, 2.5, True),
    "warmup_epochs": (-1, 0.5),
    "batch_size": (0, -64),
    "eval_batch_size": (0,),
    "eval_every": (-1,),
    "learning_rate": (-0.01, NAN, INF, "0.1"),
    "weight_decay": (-1e-4, NAN, INF),
    "optimizer": ("adam", 1),
    "decay_vectors": (1,),
    "dropout_rate": (2.0, 1.0, -0.1, NAN),
    "drop_path_rate": (1, NAN),
    "augment": ("True",),
    "mixup": (-1, NAN),
    "cutmix": (-1, INF),
    "label_smoothing": (1.0, -0.1),
    "erasing": (1.5, -0.1),
    "start_from": (3,),
    "shared": (3,),
    "class_weights": ("auto", True),
    "select_by": ("ece", 1),
    "factor_bits": (3, 32, True, "4", 4.0),
    "head_bits": (-1, 0.5),
    "start_ranks": ((0,), (1.5,), 8),
    "round_epochs": ((-1,), ("1",), 5),
    "consistency": ("pace", True, 1),
    "consistency_weight": (-1.0, NAN),
    "consistency_noise": (-0.5, INF),
    "train_limit": (-1,),
    "eval_limit": (-1, 2.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_without_sense_is_refused_with_its_range(name):
    allowed = SETTINGS[name].metadata["allowed"].one
    methods = ("linear", "fact_tt", "fact_tk") if name in METHOD_SETTINGS else ()
    unset = {f"{method}.{name}": None for method in methods}
    make_plan(config_of(unset))
    for value in WRONG[name]:
        config = config_of({**unset, name: value})
        with pytest.raises(UserError) as refused:
            make_plan(config)
        shown = "empty" if value == () else repr(config[name])
        assert f"config.{name} is {shown}; expected {allowed} (" in str(refused.value)


def test_no_number_is_beyond_all_bounds():
    huge = (10**40, 1e300, (10**40,), (1e300,))
    ranges = {name: field.metadata["allowed"] for name, field in SETTINGS.items()}
    assert not [name for name, allowed in ranges.items() if any(map(allowed.allows, huge))]


def test_every_setting_of_the_base_config_has_a_range():
    names = set(base.get_config()) - {"tasks", "methods"}
    here = SETTINGS.keys() - {"tasks", "methods"}
    assert names | {"shots"} == here == WRONG.keys()
    assert set(RUN_SETTINGS) <= names
    texts = [SETTINGS[name].metadata["what"] for name in here]
    assert all(what and not what.endswith(".") for what in texts)


def test_a_later_setting_is_stored_where_it_is_not_what_earlier_versions_did():
    (cell, *_) = make_plan(config_of())
    added = ("noise", float, setting(0.0, Real(0), "of the weights", before=0.0))
    later = dataclasses.make_dataclass("Later", [added], bases=(RunSettings,), frozen=True)
    values = dataclasses.asdict(cell.settings)
    before = {"start_from": "", "shared": "", "factor_bits": 0, "head_bits": 0}
    before |= {"class_weights": "", "select_by": ""}
    before |= {"start_ranks": (), "round_epochs": ()}
    before |= {"consistency": "", "consistency_weight": 1.0, "consistency_noise": 1.0}
    assert {**cell.settings.stored(), **before} == values
    assert not before.keys() & cell.settings.stored().keys()
    same, other = (dataclasses.replace(cell, settings=later(**values, noise=n)) for n in (0.0, 0.5))
    assert list(same.as_stored.items()) == list(cell.as_stored.items())
    assert other.as_stored == {**cell.as_stored, "noise": 0.5}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("fact_tt.learning_rates", (0.1, -1), "numbers from 0 to 3.40282e+38, with commas"),
        (
            "fact_tt.learning_rates",
            (),
            "numbers from 0 to 3.40282e+38, with commas between them, at least",
        ),
        ("fact_tt.scales", (0.1, NAN), "numbers from -3.40282e+38 to 3.40282e+38"),
        ("fact_tt.scales", 0.1, "numbers from -3.40282e+38 to 3.40282e+38"),
        ("linear.weight_decays", (-0.1,), "numbers from 0 to 3.40282e+38"),
        ("fact_tt.learning_rate", -0.5, "a finite number from 0 to 3.40282e+38"),
        ("fact_tt.scale", 1e39, "a finite number from -3.40282e+38 to 3.40282e+38"),
        ("fact_tt.rank", 0, "a whole number from 1 to 65536"),
        ("fact_tt.rank", 10**30, "a whole number from 1 to 65536"),
        ("fact_tt.rank", "4", "a whole number from 1 to 65536"),
        ("fact_tt.rank", 2.5, "a whole number from 1 to 65536"),
        ("fact_tk.mlp_cores", "own", "'released' or 'formula'"),
        ("fact_tk.dropout_rate", 2.0, "a finite number from 0 to below 1"),
        ("linear.optimizer", "lion", "'adamw' or 'sgd'"),
        ("linear.epochs", 0, "a whole number from 1 to 100000"),
        ("fact_tt.per_task.fashion.learning_rate", -1.0, "a finite number from 0 to 3.40282e+38"),
        ("shots", (0,), "whole numbers from 1 to 9999"),
    ],
)
def test_values_of_methods_tasks_and_grids_are_named_as_they_are_written(path, value, expected):
    with pytest.raises(UserError) as refused:
        make_plan(config_of({path: value}))
    shown = "empty" if value == () else repr(value)
    assert f"config.{path} is {shown}; expected {expected}" in str(refused.value)


def test_nothing_to_do_and_what_does_not_fit_together_is_refused():
    for changes, words in (
        ({"tasks": ""}, "config.tasks is empty"),
        ({"tasks": ()}, "config.tasks is empty"),
        ({"methods": " , "}, "config.methods is empty; choose from fact_tt"),
        ({"tasks": (1,)}, r"config.tasks is \(1,\); expected names such as 'a,b'"),
        ({"skip_damaged": True}, "Task digits: config.skip_damaged is True, but only pictures in"),
        ({"methods": 3}, "config.methods is 3; expected names"),
        ({"fact_tt.per_task": ConfigDict({3: {"scale": 1.0}})}, "per_task: There is no task .3"),
        ({"fact_tt": 16}, "config.fact_tt is 16; expected settings by their names"),
        ({"fact_tt.per_task": (1,)}, r"config.fact_tt.per_task is \(1,\); expected settings by"),
        ({"fact_tt.per_task.digits": 3}, "config.fact_tt.per_task.digits is 3; expected settings"),
        (
            {"fact_tt.per_task.digit": ConfigDict({"scale": 1.0})},
            "config.fact_tt.per_task: There is no task 'digit'. Did you mean 'digits'",
        ),
        ({"epoch": 3}, "has 'epoch', which is no setting and no method. Did you mean 'epochs'"),
        ({"image_size": 36}, "config.image_size 36 is not a multiple of vit_mini's patch size 8"),
        ({"attention": "cudnn"}, "Set config.dtype to 'bfloat16'"),
        ({"augment": True}, "config.augment is True, but digits is no few-shot task"),
    ):
        with pytest.raises(UserError, match=words):
            make_plan(config_of(changes))
    with pytest.raises(UserError, match="The config has no weights .*configs/base.py"):
        make_plan(ConfigDict({"tasks": "digits", "methods": "linear", "seeds": (0,)}))


def test_damaged_pictures_are_left_out_only_where_files_are_read(tmp_path):
    """The plan asks the source that a task would be read from."""

    def plan(task, data_dir=tmp_path):
        return make_plan(
            config_of({"tasks": task, "skip_damaged": True, "data_dir": str(data_dir)})
        )

    for task in ("cifar", "food101_1shot"):
        with pytest.raises(UserError, match=f"Task {task}: config.skip_damaged is True"):
            plan(task)
        plan(task, tmp_path / "of another machine")
    (tmp_path / "vtab-1k" / "cifar").mkdir(parents=True)
    (tmp_path / "food101" / "annotations").mkdir(parents=True)
    (tmp_path / "food101" / "annotations" / "test_meta.list").touch()
    for task in ("cifar", "food101_1shot", "folder_x", "folder_x_1shot"):
        assert plan(task)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (99,)}, "config.noah: depths are (99,); the ViT has 6 blocks"),
        ({"limit": 1}, "config.noah.limit is 1, but the smallest architecture has 2,177 nu"),
    ],
)
def test_a_search_without_sense_is_refused(changes, words):
    changes = {f"noah.{name}": value for name, value in changes.items()}
    with pytest.raises(UserError, match=re.escape(words)):
        make_plan(config_of({"methods": "noah", **changes}, compare.get_config))


def test_ranges_have_words_that_say_their_bounds():
    assert Whole(1, 95).one == "a whole number from 1 to 95"
    assert Real(0, 1, below=True).one == "a finite number from 0 to below 1"
    assert Real().one == "a finite number"
    assert OneOf("abc").one == "one of 'a', 'b', 'c'"
    assert OrNone(Whole(0)).one == "None or a whole number of 0 or more"
    assert Each(Whole(1), least=0).allows(())
    assert not Real().allows(10**400)
    assert Real(0, 1).allows(1)
    assert not Real(0, 1, below=True).allows(1)


# --- Settings of the command line that others win over


def test_a_setting_that_changes_nothing_is_refused_with_the_line_that_does():
    given = {"learning_rate": 0.5}
    with pytest.raises(UserError) as refused:
        overridden(config_of(given), given)
    text = str(refused.value)
    assert text.startswith("--config.learning_rate=0.5 changes nothing. It gives way to config.")
    assert "config.fact_tt.learning_rate (0.01)" in text
    advised = dict(re.findall(r"--config\.([\w.]+)=([\d.]+)", text.partition("Set ")[2]))
    assert "fact_tt.learning_rate" in advised
    changes = {path: float(value.rstrip(".")) for path, value in advised.items()}
    assert {c.learning_rate for cell in make_plan(config_of(changes)) for c in cell.candidates} == {
        0.5
    }
    overridden(config_of(changes), changes)


@pytest.mark.parametrize(
    ("get_config", "changes", "words"),
    [
        (linear.get_config, {"learning_rate": 0.1}, "--config.linear.learning_rates=0.1,"),
        (linear.get_config, {"optimizer": "adamw"}, "--config.linear.optimizer=adamw"),
        (quickstart.get_config, {"methods": "linear", "fact_tt.rank": 4}, "no cell of this sweep"),
        (
            quickstart.get_config,
            {"tasks": "digits", "fact_tt.per_task.fashion.learning_rate": 0.1},
            "no cell of this sweep",
        ),
        (
            quickstart.get_config,
            {"tasks": "fashion", "fact_tt.learning_rate": 0.1},
            "--config.fact_tt.per_task.fashion.learning_rate=0.1",
        ),
        (
            compare.get_config,
            {"methods": "fact_tt+vpt_deep", "fact_tt.learning_rates": (0.1,)},
            "Set --config.learning_rate=0.1",
        ),
    ],
)
def test_what_acts_nowhere_is_refused(get_config, changes, words):
    with pytest.raises(UserError, match="changes nothing") as refused:
        overridden(config_of(changes, get_config), changes)
    assert words in str(refused.value)
    assert not str(refused.value).endswith(",.")  # it would be part of the value


@pytest.mark.parametrize(
    ("get_config", "changes"),
    [
        (quickstart.get_config, {"fact_tt.rank": 4, "epochs": 3, "weights": "x", "seeds": (1,)}),
        (quickstart.get_config, {"methods": "fact_tt", "learning_rate": 0.01, "tasks": "digits"}),
        (tt_rank16.get_config, {"learning_rate": 0.5, "fact_tt.scales": (1.0,)}),
        (tt_rank16.get_config, {"fact_tt.published": "fact_tt_4", "seeds": (1,)}),
        (
            compare.get_config,
            {"methods": "fact_tt+vpt_deep", "learning_rate": 0.1, "fact_tt.rank": 2},
        ),
        (fewshot.get_config, {"shots": (1,), "fact_tt.learning_rates": (0.1, 0.2)}),
    ],
)
def test_what_acts_is_not_spoken_of(get_config, changes):
    assert overridden(config_of(changes, get_config), changes) == []


def test_what_acts_in_some_cells_is_said():
    changes = {"fact_tt.learning_rate": 0.5}
    (note,) = overridden(config_of(changes), changes)
    assert "acts in some cells only; others have config.fact_tt.per_task.fashion" in note
    changes = {"learning_rate": 0.5, "linear.learning_rate": None, "methods": "linear,fact_tt"}
    config = config_of({**changes, "linear.per_task": ConfigDict()})
    (note,) = overridden(config, {"learning_rate": 0.5})
    assert "others have config.fact_tt.learning_rate (0.01)" in note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"linear.scale": 5.0}, "--config.linear.scale=5.0 changes nothing: linear has no scale"),
        ({"eval_every": 3}, "changes nothing: protocol 'val' tests the last epoch only"),
        ({"linear.eval_every": 3}, "changes nothing: protocol 'val' tests the last epoch only"),
        ({"consistency_noise": 1.2}, "changes nothing: config.consistency is empty"),
        ({"fact_tt.consistency_weights": (0.1, 1.0)}, "nothing: config.consistency is empty"),
    ],
)
def test_what_has_no_effect_is_said(changes, words):
    (note,) = overridden(config_of(changes), changes)
    assert words in note


def test_a_task_s_own_value_wins_over_the_method_s_list():
    changes = {
        "fact_tt.learning_rates": (0.1, 0.2),
        "tasks": "digits,fashion",
        "methods": "fact_tt",
    }
    config = config_of(changes)  # the quickstart has a rate for fashion
    rates = [[c.learning_rate for c in cell.candidates] for cell in make_plan(config)]
    assert rates == [[0.1, 0.2], [config.fact_tt.per_task.fashion.learning_rate]]
    (note,) = overridden(config, {"fact_tt.learning_rates": (0.1, 0.2)})
    assert "acts in some cells only; others have config.fact_tt.per_task.fashion" in note


def test_a_list_of_candidates_hides_the_one_value():
    acting = resolve(linear.get_config(), "linear", "dtd").acting()
    assert acting["learning_rates"].path == "linear.learning_rates"
    assert "learning_rate" not in acting
    assert acting["epochs"].path == "epochs"


# --- Warm-up


@pytest.mark.parametrize(
    ("epochs", "warmup"),
    [(1, 0), (2, 0), (9, 0), (10, 1), (20, 2), (99, 9), (100, 10), (500, 10)],
)
def test_the_warm_up_is_a_tenth_and_ten_epochs_at_most(epochs, warmup):
    config = config_of({"epochs": epochs})
    cells = make_plan(config)
    assert {c.settings.warmup_epochs for c in cells} == {warmup}
    assert schedule_warning(config, cells) == ""


def test_the_warm_up_follows_a_method_s_own_epochs_unless_it_is_given():
    config = config_of({"epochs": 100, "fact_tt.epochs": 5})
    by_method = {c.method_name: c.settings.warmup_epochs for c in make_plan(config)}
    assert by_method == {"linear": 10, "fact_tt": 0, "fact_tk": 10}
    config.warmup_epochs = 7
    assert {c.settings.warmup_epochs for c in make_plan(config)} == {7}


@pytest.mark.parametrize(
    ("epochs", "warmup", "near"),
    [
        *[(2, 1, False), (1, 1, False), (3, 2, False), (5, 10, False), (4, 2, False)],
        *[(2, 0, True), (100, 10, True), (20, 2, True), (12, 10, True), (100, 99, True)],
    ],
)
def test_a_schedule_that_stays_below_its_peak_is_warned_of(epochs, warmup, near):
    config = config_of({"epochs": epochs, "warmup_epochs": warmup})
    warning = schedule_warning(config, make_plan(config))
    assert bool(warning) is not near
    if warning:
        assert "digits-linear-seed0 and 8 more never comes near its peak" in warning
        assert warning.endswith("set --config.warmup_epochs=0.")
        config.warmup_epochs = 0
        assert schedule_warning(config, make_plan(config)) == ""


def test_warnings_name_a_method_s_own_warm_up_and_the_supernet_s():
    config = config_of({"fact_tt.warmup_epochs": 40})
    assert schedule_warning(config, make_plan(config)).endswith(
        "set --config.fact_tt.warmup_epochs=0."
    )
    config = compare.get_config()
    config.methods = "noah"
    config.noah.supernet_epochs, config.warmup_epochs = 2, 1
    assert "noah" in schedule_warning(config, make_plan(config))


@pytest.mark.parametrize("peak", [0.0, 1e-9, 1e-6, 5e-6, 1e-3, 10.0])
def test_the_highest_rate_is_that_of_the_schedule(peak):
    assert highest_share(peak, 10**20, 10**19) > 0.9  # at once
    for epochs, warmup in itertools.product((1, 2, 3, 5, 12, 100), (0, 1, 2, 5, 10, 99, 200)):
        rates = [
            learning_rate(epoch, peak=peak, epochs=epochs, warmup_epochs=warmup)
            for epoch in range(epochs)
        ]
        assert highest_share(peak, epochs, warmup) == (max(rates) / peak if peak else 1)
