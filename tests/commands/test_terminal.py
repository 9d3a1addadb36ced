"""Text from files on its way to the terminal."""

import io
import os
import sys

import numpy as np
import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fact_jax.cli import process
from fact_jax.cli.terminal import Console, prepare_terminal
from fact_jax.errors import UserError
from fact_jax.report.terminal import print_table
from fact_jax.serving.outputs import check_not_input, logits_bytes
from fact_jax.text import printable, printable_line, say

HOSTILE = "cat\x1b[2J\x07\u202e[red]x[/red]:smile:\udce9"
SHOWN = r"cat\x1b[2J\x07\u202e[red]x[/red]:smile:\udce9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00\t\r\x1b\x7f\x9b\n", "a\\x00\\t\\r\\x1b\\x7f\\x9b\n"),
        ("\u200b\u200e\u2028\u2066\ufeff\U000e0041", r"\u200b\u200e\u2028\u2066\ufeff\U000e0041"),
        ("caf\udce9", r"caf\udce9"),
        ("Ünï 猫 می‌خواهم 👩‍🔬 ± …", "Ünï 猫 می‌خواهم 👩‍🔬 ± …"),
    ],
)
def test_printable_escapes_what_is_hidden_and_leaves_all_scripts(text, shown):
    assert printable(text) == shown
    assert printable_line(text) == shown.replace("\n", r"\n")


def test_the_console_escapes_every_string_and_reads_no_markup():
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    print_table(console, table)
    console.print(HOSTILE, Text(HOSTILE), highlight=False)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(HOSTILE)
    text = console.file.getvalue()
    assert text.count(SHOWN) == 5  # rich leaves the bell out of a Text
    assert text.count(SHOWN.replace(r"\x07", "")) == 2
    assert "\x1b[2J" not in text
    assert not {"\x07", "\u202e", "\udce9"} & set(text)


def test_say_and_warnings_are_escaped_in_a_locale_of_ascii(monkeypatch, capsys):
    say(HOSTILE)
    say(HOSTILE, error=True)
    assert list(capsys.readouterr()) == [f"{SHOWN}\n"] * 2
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    monkeypatch.setattr("warnings.showwarning", None)
    prepare_terminal()
    say(f"92.6 ± 0.1 {HOSTILE}")
    Console().print("92.6 ± 0.1")
    sys.stdout.flush()
    assert content.getvalue().decode().splitlines() == [f"92.6 \\xb1 0.1 {SHOWN}", r"92.6 \xb1 0.1"]


def test_an_error_of_a_command_is_escaped(monkeypatch, capsys):
    def fail():
        raise UserError(HOSTILE)

    monkeypatch.setattr(process.app, "run", lambda main, flags_parser: main(["command"]))
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(process, "prepare_process", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr("warnings.showwarning", None)
    with pytest.raises(SystemExit):
        process.run(fail)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


def test_an_input_is_never_an_output(tmp_path):
    """Another name or a link does not help; results beside pictures are no inputs."""
    file, folder = tmp_path / "x.npy", tmp_path / "weights"
    file.write_bytes(b"x")
    folder.mkdir()
    (folder / "model.npz").write_bytes(b"x")
    os.link(file, tmp_path / "hard.npy")
    os.symlink(file, tmp_path / "soft.npy")
    for out in (file, tmp_path / "hard.npy", tmp_path / "soft.npy", tmp_path / "." / "x.npy"):
        with pytest.raises(UserError, match="--out .* is a file of --images"):
            check_not_input(str(out), factors="", images=str(file))
    with pytest.raises(UserError, match="is a file of --weights"):
        check_not_input(str(folder / "model.npz"), weights=str(folder))
    check_not_input(str(folder / "logits.csv"), images=str(folder), weights=None)
    check_not_input(str(tmp_path / "new.npy"), images=str(file), weights="hf:owner/name")


def test_logits_are_csv_without_formulas_or_broken_text():
    content = logits_bytes(".csv", np.zeros((1, 2)), ["-1.jpg"], ["=1+1", "\ud800 caf\udce9"])
    assert content == b"file,'=1+1,\\ud800 caf\\udce9\n'-1.jpg,0,0\n"
