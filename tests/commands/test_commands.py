"""`fact-jax COMMAND`, configs by name and by path, `--help`, and what a light install lacks."""

import importlib
import re
import shlex
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
from absl import flags
from places import ROOT
from run_command import run_command

from fact_jax import UserError, command_line, extras
from fact_jax.cli import arguments, configs, main, report
from fact_jax.cli.process import rerun_command


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder outside of the checkout, where a command runs; afterwards `configs` is as before."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("configs", "config_file")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["tt_rank16", "tt_rank16.py", "configs/tt_rank16.py", "./configs/tt_rank16.py"]
)
def test_a_config_of_the_package_is_found_from_any_folder(elsewhere, name):
    assert configs.find(name) == ROOT / "configs" / "tt_rank16.py"
    assert configs.load(name).fact_tt.rank == 16


def test_a_config_takes_its_argument_by_name_and_by_path(elsewhere):
    for name in ("compare", "configs/compare.py", f"{ROOT}/configs/compare.py"):
        assert configs.load(f"{name}:dinov2").variant == "dinov2_s14"
    assert configs.load("fewshot:lora,noah").methods == "lora,noah"


def test_a_name_is_the_package_s_and_a_path_the_user_s(elsewhere):
    (elsewhere / "configs").mkdir()
    for path in ("tt_rank16.py", "configs/tt_rank16.py", "tt_rank16"):
        (elsewhere / path).touch()
    assert configs.find("tt_rank16") == ROOT / "configs" / "tt_rank16.py"
    for path in ("tt_rank16.py", "configs/tt_rank16.py", "./tt_rank16.py"):
        assert configs.find(path) == Path(path)


def test_a_user_s_config_builds_on_ours_whatever_else_is_called_configs(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs.py").write_text("raise RuntimeError('another configs')")
    (elsewhere / "configs" / "__init__.py").write_text("raise RuntimeError('another configs')")
    (elsewhere / "configs" / "shared.py").write_text("EPOCHS = 7")
    (elsewhere / "configs" / "mine.py").write_text(
        "from configs import base, shared\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.epochs = shared.EPOCHS\n"
        "    return config\n"
    )
    assert configs.load("configs/mine.py").epochs == 7


FAULTS = {
    "ZeroDivisionError: division by zero": "1 / 0",
    "RecursionError: maximum": "get_config()",
    "SystemExit: 0": "raise SystemExit(0)",
    "FileNotFoundError: [Errno 2]": "open('/nowhere')",
    "ValueError: invalid literal": "int('x')",
    "SyntaxError: invalid syntax": "eval('1 +')",
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tt_rnk16", ["'tt_rnk16'", "Did you mean tt_rank16?", "compare,", "vpt_shallow"]),
        ("", ["''", "quickstart"]),
        ("/nowhere/x.py", ["/nowhere/x.py", "quickstart"]),
        ("mine", ["Did you mean the file mine.py?"]),
        ("tt_rank16:x", ["tt_rank16.py takes no argument"]),
        ("compare:x", ["compare.py:x: expected 'quickstart'"]),
        ("mine.py", ["mine.py has no function get_config()"]),
        ("typo.py", ["typo.py, line 2: NameError", "'ConfigDcit'"]),
        ("broken.py", ["broken.py, line 1: SyntaxError"]),
        ("mapping.py", ["mapping.py gave a dict; expected a ConfigDict"]),
        *[(f"fault{i}.py", [f"fault{i}.py, line 2: ", word]) for i, word in enumerate(FAULTS)],
    ],
)
def test_a_config_that_cannot_be_had_is_named(elsewhere, name, words):
    (elsewhere / "mine.py").touch()
    (elsewhere / "typo.py").write_text("def get_config():\n    return ConfigDcit()\n")
    (elsewhere / "broken.py").write_text("def get_config(:\n")
    for i, line in enumerate(FAULTS.values()):
        (elsewhere / f"fault{i}.py").write_text(f"def get_config():\n    {line}\n")
    (elsewhere / "mapping.py").write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError) as caught:
        configs.load(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], None, "vtab "),
        (["--help"], None, "fact-jax COMMAND --help"),
        (["--version"], None, "fact-jax 0."),
        (["vtb"], 2, "'vtb' is not a command. Did you mean vtab?"),
        (["--config", "x", "vtab"], 2, "the command comes first"),
    ],
)
def test_the_console_script_without_a_command(monkeypatch, capsys, words, status, said):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fact-jax", *words])
    if status is None:
        main.main()
    else:
        with pytest.raises(SystemExit) as caught:
            main.main()
        assert caught.value.code == status
    out = capsys.readouterr()
    assert said in (out.err if status else out.out)


def test_the_console_script_starts_one_command_with_its_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fact-jax", "report", "--workdir=A"])
    begun = []
    monkeypatch.setattr(main.process, "run", lambda *of: begun.append([sys.argv, *of]))
    main.main()
    argv = ["fact-jax report", "--workdir=A"]
    assert begun == [[argv, report.main, report.__doc__, report.define_flags]]


_SWEEP = "config workdir cells dry_run distributed launcher launch"
_FACTORS = "factors out variant weights method scale any_weights"
FLAGS = {
    "fit": (
        "images out variant weights epochs image_size batch_size rank class_weights select_by "
        "skip_damaged seed"
    ),
    "vtab": _SWEEP,
    "fewshot": _SWEEP,
    "predict": f"{_FACTORS} images topk batch_size class_names dtype precision",
    "export": f"{_FACTORS} format names base_model",
    "push": "factors repo private message base_model variant",
    "round": "factors out rank error bytes images variant weights bits finish_epochs method",
    "serve": (
        "factors variant weights any_weights host port allow_host token_env token_file batch_size "
        "stored dtype precision warm_up grace max_body_mb max_bodies_mb max_megapixels max_queue "
        "max_tasks max_name max_connections max_delay_ms decode_threads head_timeout body_timeout "
        "answer_timeout"
    ),
    "bank train": f"{_SWEEP} dictionary",
    "bank share": "factors out rank method bits",
    "bank pack": "factors out",
    "bank unpack": "pack out",
    "report": "workdir out",
    "data": "check prepare tasks export format out data_dir",
}


@contextmanager
def flags_of_its_own():
    """Takes the flags out again that are defined meanwhile."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for added in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, added)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_commands_share_a_process_and_each_helps_with_its_own_flags_only(name):
    module = importlib.import_module(f"fact_jax.cli.{name.replace(' ', '_')}")
    with flags_of_its_own():
        module.define_flags()
        text = arguments.help_text(module.__doc__)
    listed = re.findall(r"^  --(?:\[no\])?(\w+)", text, re.MULTILINE)
    assert sorted(listed) == sorted(FLAGS[name].split())


def test_command_lines_in_messages_are_those_of_the_user_s_start(monkeypatch):
    def start(argv, module):
        spec = types.SimpleNamespace(name=module) if module else None
        monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
        monkeypatch.setattr(sys, "argv", [argv, "--workdir", "my runs"])
        return command_line.command("report", "--workdir=a b"), shlex.split(rerun_command("c"))

    rest = ["--workdir", "my runs", "--cells=c"]
    line, again = start("/checkout/experiments/vtab.py", "experiments.vtab")
    assert line == "python -m experiments.report '--workdir=a b'"
    assert again == ["python", "-m", "experiments.vtab", *rest]
    line, again = start("fact-jax vtab", None)
    assert line == "fact-jax report '--workdir=a b'"
    assert again == ["fact-jax", "vtab", *rest]
    assert command_line.as_started("x\n  python -m experiments.data y") == "x\n  fact-jax data y"
    line, again = start("own.py", None)
    assert again == ["python", "own.py", *rest]


def test_help_lists_the_command_s_own_flags_and_the_configs():
    out = run_command("experiments.vtab", "--config.epochs=x", "--help")
    assert out.returncode == 0, out.stderr
    for word in (
        *("python -m experiments.vtab --config quickstart", "--config.NAME=VALUE", "tt_rank16"),
        *("--launcher=local|ray|slurm", "partition", "--[no]dry_run"),
        str(ROOT / "fact_jax" / "sweep" / "settings.py"),
    ):
        assert word in out.stdout
    for word in ("verbosity", "pdb", "null"):  # of absl
        assert word not in out.stdout


def test_errors_of_flags_say_what_lists_them(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_integer("topk", None, "", flag_values=values)
    with pytest.raises(flags.Error) as caught:
        values(["x", "--tpk=1"])
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["fact-jax predict"])
    said = arguments._explained(caught.value)
    assert said == "Unknown command line flag 'tpk'. `fact-jax predict --help` lists the flags."


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("batch_size=nan", "config.batch_size is 'nan'; expected a whole number from 1 to 65536 ("),
        ("download=-1", "config.download is '-1'; expected True or False ("),
        ("warmup_epochs=None", "config.warmup_epochs is 'None'; expected a whole number from 0"),
        ("fact_tt.rank=1.5", "config.fact_tt.rank is '1.5'; expected a whole number"),
        ("seeds[0]=x", "config.seeds is 'x'; expected whole numbers from 0"),
        ("seeds=1 --own=x", "--own is 'x'; expected a whole number."),
        ("seeds[5]=1", "--config.seeds[5]=1: no list has this place; set the whole list"),
        ("seeds[x]=1", "--config.seeds[x]=1: no list has this place; set the whole list"),
        ("fact_tt.scalez=1", "unknown setting 'scalez'. Did you mean \"scale\""),
        ("fact_tt.x.y=1", "unknown setting 'x'. The config's file"),
        ("foo=1", "unknown setting 'foo'. The config's file"),
        ("fact_tt+vpt_deep.x=1", "characters that no name has"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_range(monkeypatch, capsys, word, said):
    monkeypatch.setattr(sys, "argv", ["vtab", *f"--config.{word}".split()])

    def define():
        flags.DEFINE_integer("own", 1, "")
        configs.define_flag("quickstart")

    with flags_of_its_own(), pytest.raises(SystemExit, match="2"):
        arguments.parse(sys.argv, "", define)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err


def test_what_an_extra_brings_is_asked_for_by_its_name(monkeypatch):
    extras.require("The report", "report", "json")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"results_frame needs pandas: pip install 'fact-jax\[rep"):
        extras.require("results_frame", "report", "pandas")
