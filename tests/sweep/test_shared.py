"""Sweeps whose tasks share factors: learnt together, or from a dictionary."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from fact_jax import Predictor, UserError, load_factors, load_vit, normalise
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.files.dictionary import Dictionary
from fact_jax.report.records import method_settings
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.shared import dictionary_for, untrained


def config(tasks, **changes):
    c = quickstart.get_config()
    c.tasks, c.methods, c.epochs, c.train_limit, c.eval_limit = tasks, "fact_tk", 3, 64, 100
    c.warmup_epochs, c.fact_tk.rank = 0, 2
    c.update_from_flattened_dict(changes)
    return c


def run(sweep, workdir):
    return run_sweep(sweep, str(workdir), Console(quiet=True))


def factors(workdir, task):
    return load_factors(workdir / "factors" / f"{task}-fact_tk-seed0.safetensors")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("learnt")
    return workdir, run(config("digits,fashion", shared="learn"), workdir)


def test_tasks_learn_one_dictionary_and_cores_of_their_own(learnt):
    workdir, results = learnt
    digits, fashion = (factors(workdir, task) for task in ("digits", "fashion"))
    assert digits.dictionary.content == fashion.dictionary.content
    fresh = digits.method.init(jax.random.key(0), load_vit("vit_mini")[0].config)
    for name in ("U", "C", "V"):
        np.testing.assert_array_equal(digits.factors[name], fashion.factors[name])
        assert np.linalg.norm(digits.factors[name]) == pytest.approx(2**0.5)  # of unit size
        assert np.abs(np.asarray(fresh[name]) - digits.factors[name]).max() > 1e-3
    assert np.abs(digits.factors["P"] - fashion.factors["P"]).max() > 1e-3
    assert [r.num_factors for r in results] == 2 * [2 * 72]  # P [2, 12 x 6]
    assert results[0].settings["together"] == ["digits", "fashion"]
    assert "together" not in method_settings(results[0])
    assert run(config("digits,fashion", shared="learn"), workdir) == results  # nothing runs again
    with pytest.raises(UserError, match="together was"):
        run(config("digits,fashion,location", shared="learn"), workdir)


def test_a_new_task_trains_its_cores_and_leaves_the_dictionary(learnt, tmp_path):
    workdir, _ = learnt
    dictionary = factors(workdir, "digits").dictionary
    path = workdir / "factors" / dictionary.file_name
    sweep = config("location", **{"fact_tk.shared": str(path)})
    (result,) = run(sweep, tmp_path)
    task = factors(tmp_path, "location")
    for name in ("U", "C", "V"):
        np.testing.assert_array_equal(task.factors[name], dictionary.factors[name])
    assert np.abs(task.factors["P"]).max() > 1e-3
    assert result.num_factors == task.factors["P"].size
    data = open_task(get_task("location"), DataSettings(image_size=32))
    images, labels = next(iter(data.stream("test", 100, 100)))
    logits = Predictor(*load_vit("vit_mini"), task).logits(
        np.asarray(normalise(images, "imagenet"))
    )
    assert result.accuracy == 100 * (logits.argmax(-1) == labels).mean()
    assert run(sweep, tmp_path) == [result]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared": "learn", "methods": "linear"}, "Linear has no factors that tasks share"),
        ({"shared": "learn", "start_from": "x"}, "both set"),
        (
            {"shared": "learn", "fact_tk.scales": (1.0, 2.0)},
            r"fact_tk.scales has 2 candidates .* --config.fact_tk.scales='\(1,\)'",
        ),
        ({"shared": "learn", "factor_bits": 4}, "a dictionary is stored in float32"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_the_plan(changes, words):
    with pytest.raises(UserError, match=words):
        make_plan(config("digits", **changes))


def test_tasks_that_cannot_train_together_cannot_learn_together(tmp_path):
    sweep = config("digits,location", shared="learn")
    sweep.fact_tk.per_task = ConfigDict({"location": {"epochs": 5}})
    words = "digits-fact_tk-seed0 and location-fact_tk-seed0 are to learn a dictionary together"
    with pytest.raises(UserError, match=words):
        run(sweep, tmp_path)


def test_a_dictionary_that_does_not_fit_is_refused_before_training(learnt, tmp_path):
    workdir, _ = learnt
    path = str(workdir / "factors" / factors(workdir, "digits").dictionary.file_name)
    for changes, words in [
        ({"shared": path, "fact_tk.rank": 3}, "the same settings"),
        ({"shared": str(tmp_path / "no.dictionary")}, "no.dictionary, which cannot be read"),
    ]:
        with pytest.raises(UserError, match=words):
            run(config("location", **changes), tmp_path / "w")


def test_a_dictionary_that_changes_is_read_anew(tmp_path):
    path, (cell,) = tmp_path / "a.dictionary", make_plan(config("digits"))
    vit, method = load_vit("vit_mini")[0].config, cell.method
    for seed in range(2):
        factors = method.init(jax.random.key(seed), vit)
        path.write_bytes(Dictionary.of(method, factors, vit, {}).content)
        read = dictionary_for(path, method, vit, "0" * 64)
        np.testing.assert_array_equal(read.factors["U"], factors["U"])


def test_the_plan_says_which_tasks_learn_together():
    cells = make_plan(config("digits,fashion", shared="learn", seeds=(0, 1)))
    assert {cell.together for cell in cells} == {("digits", "fashion")}
    (alone,) = make_plan(config("digits"))
    assert not {"shared", "together"} & alone.all_settings.keys()


def test_a_new_task_begins_with_no_increments():
    vit, method = load_vit("vit_mini")[0].config, make_plan(config("digits"))[0].method
    factors = method.init(jax.random.key(0), vit)
    head = {"kernel": np.ones(3), "bias": np.ones(3)}
    fresh = untrained({"factors": factors, "head": head}, Dictionary.of(method, factors, vit, {}))
    assert fresh["factors"].keys() == {"P"}
    assert not fresh["factors"]["P"].any()
    assert fresh["head"] is head
