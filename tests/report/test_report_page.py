"""The page and its Markdown: numbers, warnings, words, and nothing from outside."""

import itertools
import json
import os
import re
import statistics
from collections import Counter, defaultdict
from html.parser import HTMLParser

import pytest
from etils import epath
from report_results import STUDY, result, strip, write, write_study
from run_command import run_command

from fact_jax.data import VTAB
from fact_jax.errors import UserError
from fact_jax.report.blocks import Figure
from fact_jax.report.blocks import Text as TextBlock
from fact_jax.report.charts import accuracy_against_rank
from fact_jax.report.classes import _strip
from fact_jax.report.folder import GENERATOR, replace_report
from fact_jax.report.page import report_blocks, write_report
from fact_jax.report.palette import _METHODS, COLOURS, method_style, style, styles
from fact_jax.report.provenance import notices
from fact_jax.report.published import published
from fact_jax.report.records import read_config
from fact_jax.report.study import read_study
from fact_jax.report.table import Cell, Column, Row, Table
from fact_jax.report.writers import markdown
from fact_jax.report.writers import page as html_page
from fact_jax.text import printable
from fact_jax.tuning import METHODS as METHODS_OF_THE_PACKAGE


class Page(HTMLParser):
    """Tables as lists of rows of texts, all attributes, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "small":
            self.tables[-1][-1][-1] += " "

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The made-up study, two seeds: the work directory, its page, parsed, and its Markdown."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_study(folder)
    report = write_report([folder])
    html, text = ((report / name).read_text() for name in ("index.html", "report.md"))
    return folder, html, Page(html), text


def test_the_table_has_every_number(synthetic):
    """Means over seeds, groups and tasks equal those computed by hand from the JSON files."""
    folder, _, page, text = synthetic
    results = [json.loads(p.read_text()) for p in (folder / "results").iterdir()]
    averages, tasks = page.tables[:2]
    assert (len(averages[1]), len(tasks[1])) == (1 + 1 + 5 + 4, 1 + 19)
    rows = {
        a[0]: dict(zip(averages[1] + tasks[1], a + t, strict=True))
        for a, t in zip(averages[2:], tasks[2:], strict=True)
    }
    for method, numbers in STUDY.items():
        cells, by_task = rows[method], defaultdict(list)
        for one in results:
            if one["method"] == method:
                by_task[one["task"]].append(one["accuracy"])
        a, b = by_task["cifar"]
        assert cells["cifar"] == f"{(a + b) / 2:.1f} ± {abs(a - b) / 2:.1f}"
        groups = [
            statistics.fmean(statistics.fmean(by_task[t]) for t in VTAB if VTAB[t].group == group)
            for group in ("natural", "specialized", "structured")
        ]
        assert cells["group mean"].split(" ")[0] == f"{statistics.fmean(groups):.2f}"
        assert cells["structured"].split(" ")[0] == f"{groups[2]:.2f}"
        of_tasks = statistics.fmean(statistics.fmean(v) for v in by_task.values())
        assert cells["mean of 19"].split(" ")[0] == f"{of_tasks:.2f}"
        assert (cells["numbers"], cells["seeds"]) == (f"{numbers:,}", "2")
        assert f"{groups[0]:.2f}" in text
    names = list(rows)
    published_name = names[names.index("fact_tt") + 1]
    assert published_name == "published fact_tt_le16 (best on test)"
    known = published()["vtab1k"]["fact_tt_le16"]["tasks"]["cifar"]
    assert (rows[published_name]["cifar"], rows[published_name]["group mean"]) == (
        str(known),
        "75.34",
    )


def test_the_page_shouts_synthetic(synthetic):
    _, html, page, text = synthetic
    assert 'class="notice error"><b>Warning.</b> <strong>SYNTHETIC' in html
    assert "SYNTHETIC" in text.split("## Results")[0]
    assert "SYNTHETIC" in page.text


def test_nothing_comes_from_outside_and_nothing_goes_there(synthetic):
    _, html, page, _ = synthetic
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert value.startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!data:|#)|@import|fetch\(|XMLHttpRequest|import\(", html)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert {rules[name] for name in ("default-src", "form-action", "base-uri")} == {"'none'"}
    assert rules["img-src"] == "data:"
    assert len(html) < 5e6


def test_figures_have_words_files_and_ids_of_their_own(synthetic):
    """Several figures in one page would take each other's clips and markers."""
    folder, _, page, text = synthetic
    labels = [v for tag, name, v in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == len(re.findall(r"!\[[^\]]*\]\([\w-]+\.png\)", text)) >= 5
    assert all(len(label) > 20 for label in labels)
    for name in re.findall(r"\]\(([\w.-]+)\)", text):
        assert (folder / "report" / name).stat().st_size > 500, name
    for stem in ("vtab-size", "vtab-bars", "vtab-loss", "vtab-test", "vtab-scale"):
        assert (folder / "report" / f"{stem}.png").exists()
        svg = (folder / "report" / f"{stem}.svg").read_text()
        assert svg.startswith("<?xml")
        assert "<text" in svg
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_failures_have_their_command(synthetic):
    _, _, page, text = synthetic
    assert "1 cell failed" in page.text
    assert "NonFiniteLoss: The loss became nan in epoch 3." in page.text
    command = "python -m experiments.vtab --config=configs/ssf.py --config.tasks=dtd"
    assert command in page.text
    assert command in text


def test_confusions_and_worst_classes(synthetic):
    folder, _, page, _ = synthetic
    counts = Counter()
    for path in (folder / "results").glob("synthetic-dtd-fact_tk-*.json"):
        for true, predicted, n in json.loads(path.read_text())["confusion"]:
            counts[true, predicted] += n * (true != predicted)
    tables = [t for t in page.tables if t[0][0] == "true class"]
    assert len(tables) == len(STUDY)  # one task of more than 20 classes
    rows = next(t for t in tables if t[1][2] == str(max(counts.values())))
    assert all(n.isdigit() for _, _, n, _ in rows[1:])
    worst = [t for t in page.tables if t[0][:2] == ["class", "mean"]]
    assert len(worst) == 3
    means = [float(row[1]) for row in worst[0][1:]]
    assert means == sorted(means)


def grid(methods=("linear", "lora"), seeds=(0, 1, 2), step=5, **more):
    """Results on two tasks, each method `step` points above the one before it."""
    cells = itertools.product(("digits", "fashion"), enumerate(methods), seeds)
    return [result(t, m, s, 70.0 + step * i + s, **more) for t, (i, m), s in cells]


def small(folder):
    return write(folder, grid())


def reported(folder, results, **more):
    """The report's folder, and its page, parsed."""
    report = write_report([write(folder, results, **more)])
    return report, Page((report / "index.html").read_text())


def texts(tmp_path, kind):
    return " | ".join(n.text for n in notices(read_study(tmp_path)) if n.kind == kind)


def test_the_best_of_ours_is_bold(tmp_path):
    html = (write_report([small(tmp_path)]) / "index.html").read_text()
    assert re.findall(r"<td[^>]*><b>([\d.]+)</b>", html)[:3] == ["76.00", "76.0", "76.0"]


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>|`x`$\\foo$"
    more = {
        "class_names": [evil, "b & c"],
        "confusion": [[0, 0, 5], [0, 1, 3], [1, 1, 4]],
        "per_class_accuracy": [62.5, 100.0],
        "data": {"note": evil},
        "examples": {"file": "examples/x.jpg", "size": 8, "true": [0], "predicted": [1]},
    }
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "x.jpg").write_bytes(strip(1))
    failure = {"cell": "a", "error": evil, "message": evil, "traceback": evil}
    report, page = reported(tmp_path, [result(seed=s, **more) for s in (0, 1)], failures=[failure])
    assert (report / "index.html").read_text().count("<script>") == 1
    markdown = re.sub(r"```.*?```", "", (report / "report.md").read_text(), flags=re.DOTALL)
    assert "<script>" not in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`x\\`" in markdown
    assert page.text.count("alert(1)") >= 5
    assert ("b", "aria-label", f"{evil}, taken for b & c") in page.attributes
    assert (report / "examples-digits.jpg").read_bytes() == strip(1)


@pytest.mark.parametrize("content", [None, b"no picture", strip(3)])
def test_missing_and_broken_pictures_are_said(tmp_path, content):
    examples = {"file": "../examples/x.jpg", "size": 8, "true": [0], "predicted": [1]}
    write(tmp_path, [result(confusion=[[0, 1, 1]], examples=examples)])
    (tmp_path / "examples").mkdir()
    if content is not None:
        (tmp_path / "examples" / "x.jpg").write_bytes(content)
    html = (write_report([tmp_path]) / "index.html").read_text()
    assert "missing or broken" in html
    assert "image/jpeg" not in html


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"settings": {"mock_data": True}}, "error", "Random mock data"),
        ({"settings": {"eval_limit": 64}}, "error", "Shortened data (eval_limit)"),
        ({"protocol": "paper"}, "error", "several protocols"),
        ({"settings": {"epochs": 9}}, "error", "different settings: lora"),
        ({"settings": {"dtype": "bfloat16"}}, "error", "dtype: None, bfloat16"),
        ({"environment": {"commit": "c1"}}, "warning", "several commits: c0, c1"),
        ({"data": {"builder": "vtab-1k"}}, "error", "digits came from several sources"),
        (
            {"losses": [3.0, 2.5, 2.31], "per_class_accuracy": [10.0] * 10},
            "warning",
            "1 training broke down, with a loss at the end that is no lower than guessing",
        ),
        ({"environment": {"commit": "c1+changes"}}, "warning", "uncommitted changes"),
        (
            {"data": {"mapped": True, "used_version": "4.0.0", "note": "other boxes"}},
            "warning",
            "digits was read from version 4.0.0 in the place of 1.*.*: other boxes",
        ),
    ],
)
def test_warnings(tmp_path, more, kind, said):
    write(tmp_path, [result(seed=s) for s in (0, 1)])
    assert said not in texts(tmp_path, kind)
    write(tmp_path, [result(seed=2, **more)])
    assert said in texts(tmp_path, kind)


def test_older_results_and_missing_config_are_said(tmp_path):
    old = {k: v for k, v in result().items() if k not in ("confusion", "examples")}
    write(tmp_path, [old])
    assert "older version" in texts(tmp_path, "info")
    assert "No config.json" in texts(tmp_path, "warning")
    assert "One seed" in texts(tmp_path, "warning")


def test_a_sweep_of_which_only_failures_are_left(tmp_path):
    failure = {"cell": "x", "error": "ValueError", "message": "no"}
    _, page = reported(tmp_path, [], failures=[failure])
    assert "ValueError: no" in page.text
    assert page.tables == []


@pytest.mark.parametrize(
    ("results", "said", "unsaid"),
    [
        (
            [result("folder_pets", settings={"train_limit": 64})],
            [
                "Own data sets: sizes are in the table",
                "lora alone has all tasks: accuracy on folder_pets 80.00",
                "Shortened",
            ],
            ["train800", "1,000 images", "Group mean", "the order is"],
        ),
        (
            [
                result("folder_pets", m, label_precision=[80.0, None], per_class_accuracy=None)
                for m in ("fact_tt", "lora")
            ],
            [
                "mAP on folder_pets",
                "Own data sets: mAP on test in %",
                "where an image has several labels, their mean average precision",
            ],
            ["top-1 accuracy", "Accuracy on test"],
        ),
        (
            [result(t, m) for t in ("dtd", "svhn") for m in ("fact_tt", "lora")],
            [
                "train800 and val200",
                "2 of VTAB-1K's 19 tasks",
                "mean of 2",
                "Group mean",
                "The published rows are of ViT-B/16 at 224 px, not of vit_mini",
                "re-run lora (OSU, val)",
                "One seed: no error bar",
            ],
            ["Shortened"],
        ),
        ([result("digits_4shot")], ["K images a class"], ["1,000 images"]),
    ],
    ids=["own", "several labels", "a part of VTAB", "few-shot"],
)
def test_what_was_trained_on_is_said_by_kind_of_task(tmp_path, results, said, unsaid):
    _, page = reported(tmp_path, results)
    assert [text for text in said if text not in page.text] == []
    assert [text for text in unsaid if text in page.text] == []
    assert "group mean" not in page.tables[0][1]  # which a part of VTAB does not have


def test_a_method_counts_once_in_the_title_however_many_rows_it_has(tmp_path):
    methods = ("lora", "fact_tt", "fact_tk", "linear")
    one = write(tmp_path / "one", [result(method=m) for m in methods])
    two = write(tmp_path / "two", [result(method=m, settings={"epochs": 9}) for m in methods])
    page = Page((write_report([one, two]) / "index.html").read_text())
    assert "4 methods on the offline suite" in page.text


def test_few_shot_only(tmp_path):
    results = [
        result(f"{d}_{k}shot", m, s, 10.0 * i + k + s, variant="vit_b16")
        for d in ("food101", "oxford_pets")
        for k in (1, 16)
        for i, m in enumerate(("lora", "fact_tt"))
        for s in (0, 1, 2)
    ]
    report, page = reported(tmp_path, results)
    head, *rows = [row[:5] for row in page.tables[0][1:]]
    assert head == ["method", "data", "numbers", "1", "16"]
    # 1 + 0, 1, 2 at one shot, 16 + 0, 1, 2 at sixteen; 31.8 and 72.5 are published.
    assert rows[0] == ["fact_tt", "food101", "1,000", "12.0 ± 0.6", "27.0 ± 0.6"]
    assert ["published lora (best on test)", "food101", "–", "31.8", "72.5"] in rows
    assert ["lora", "mean", "1,000", "2.0 ± 0.6", "17.0 ± 0.6"] in rows
    assert "cannot be tested with 2 data sets" in page.text
    assert (report / "fewshot.svg").exists()


def test_rank_and_selection_figures(tmp_path):
    selection = {
        "scale=0.1, learning_rate=0.01": 70.0,
        "scale=1, learning_rate=0.01": 75.0,
        "scale=0.1, learning_rate=0.1": 72.0,
        "scale=1, learning_rate=0.1": None,
    }
    for rank in (4, 8):
        more = {"settings": {"rank": rank}, "selection": selection, "grid_size": 4}
        results = [result("digits", "lora", s, 70 + rank + s, **more) for s in (0, 1)]
        write(tmp_path / f"r{rank}", results)
    blocks = report_blocks(read_study(tmp_path / "r4", tmp_path / "r8"))
    axes = {b.name: b.figure.axes[0] for b in blocks if isinstance(b, Figure)}
    (container,) = axes["rank"].containers
    assert container.lines[0].get_xydata().tolist() == [[4.0, 74.5], [8.0, 78.5]]
    scale = axes["offline-scale"].lines[0].get_xydata().tolist()
    assert scale == [[0.1, 72.0], [1.0, 75.0]]  # the best over the learning rates
    rate = axes["offline-learning-rate"].lines[0].get_xydata().tolist()
    assert rate == [[0.01, 75.0], [0.1, 72.0]]


def test_finished_factors_have_a_line_over_the_rank(tmp_path):
    for rank, folder in itertools.product((4, 8), ("", "small-", "plain-")):
        settings = {"rank": rank, **({"start_from": f"{folder}{rank}"} if folder else {})}
        write(tmp_path / f"{folder}{rank}", [result(accuracy=70.0 + rank, settings=settings)])
    figure = accuracy_against_rank(read_study(*sorted(tmp_path.iterdir())).systems)
    assert figure is not None
    assert sorted(text.get_text() for text in figure.figure.legends[0].get_texts()) == [
        "lora (start_from=plain-R), mean of 1 task",
        "lora (start_from=small-R), mean of 1 task",
        "lora, mean of 1 task",
    ]
    assert len(figure.figure.axes[0].containers) == 3


def test_curves_over_the_rank_are_of_equal_settings(tmp_path):
    for name, rank, sites in (("a", 4, "qv"), ("b", 8, "qv"), ("c", 8, "qvo"), ("d", 4, "qvo")):
        settings = {"rank": rank, "sites": [*sites]}
        write(tmp_path / name, [result(accuracy=70.0 + rank + len(sites), settings=settings)])
    figure = accuracy_against_rank(read_study(*sorted(tmp_path.iterdir())).systems)
    points = [c.lines[0].get_xydata().tolist() for c in figure.figure.axes[0].containers]
    assert sorted(points) == [[[4.0, 76.0], [8.0, 80.0]], [[4.0, 77.0], [8.0, 81.0]]]


def test_own_pictures_that_have_changed_are_said(tmp_path):
    own = [
        result("folder_pets", seed=s, data={"used_version": "classes", "fingerprint": str(s)})
        for s in (0, 1)
    ]
    write(tmp_path, own[:1])
    assert "several sources" not in texts(tmp_path, "error")
    write(tmp_path, own)
    assert "folder_pets came from several sources" in texts(tmp_path, "error")


def test_a_work_directory_under_two_names_counts_once(tmp_path, monkeypatch):
    config = {"tasks": "digits", "methods": "lora", "seeds": [0]}
    write(tmp_path / "a", [result()], config)
    monkeypatch.chdir(tmp_path)
    study = read_study("a", "./a")
    assert (study.workdirs, study.missing) == (("a",), ())


def test_found_architectures_are_drawn(tmp_path):
    history = [{"best": 70.0, "tried": 5}]
    search = {"best": [[1, 2], [3, 4], [5, 6]], "fitness": 71.0, "history": history}
    report, page = reported(tmp_path, [result(search=search)])
    assert "found, of 5 tried: 71.0 %" in page.text
    assert (report / "architecture-digits.svg").exists()
    assert "| 1 + 5 |" in (report / "report.md").read_text()  # the grid: settings, architectures


def test_what_is_said_of_differences(tmp_path):
    """Five points apart with errors of 0.6: above the noise. Then the same numbers: not."""
    above = "**More than the noise of training, on these very tasks**: lora over linear by 5.00"
    text = (write_report([small(tmp_path / "a")]) / "report.md").read_text()
    assert above in text
    assert "needs at least 6" in text
    # 797 test images: sqrt(77 x 23 / 797) and sqrt(70 x 30 / 797).
    assert "alone good for 1.5 to 1.6 points on a single task" in text
    text = (write_report([write(tmp_path / "b", grid(step=0))]) / "report.md").read_text()
    assert "More than the noise" not in text
    assert "**Not told apart by these seeds**: linear over lora by 0.00" in text


def test_a_second_report_leaves_no_old_pictures(tmp_path):
    report = write_report([small(tmp_path)])
    (report / "mine.png").write_bytes(b"")
    assert (report / "offline-bars.png").exists()
    for path in (tmp_path / "results").iterdir():
        path.unlink()
    write(tmp_path, [result("digits_1shot")])
    write_report([tmp_path])
    assert {p.stem for p in report.glob("*.png")} == {"mine", "fewshot", "fewshot-loss"}


def test_pictures_of_others_stay(tmp_path):
    out = tmp_path / "docs"
    out.mkdir()
    (out / "report.md").write_text("![mine](mine.png)")
    (out / "mine.png").write_bytes(b"")
    (out / "holiday.jpg").write_bytes(b"")
    write(tmp_path, [result(method="](holiday.jpg)", cell="](holiday.jpg)")])
    with pytest.warns(UserWarning, match="report.md was not written by a report"):
        write_report([small(tmp_path)], out)
    write_report([tmp_path], out)
    assert (out / "mine.png").exists()
    assert (out / "holiday.jpg").exists()
    (kept,) = out.glob("report.md.before-*")
    assert kept.read_text() == "![mine](mine.png)"


def test_pipes_in_the_place_of_files_are_not_opened(tmp_path):
    """etils takes them for files; whoever opened one would wait for ever."""
    os.mkfifo(tmp_path / "index.html")
    with pytest.warns(UserWarning, match="index.html was not written by a report"):
        replace_report(epath.Path(tmp_path), {"index.html": b"new"})
    assert (tmp_path / "index.html").read_bytes() == b"new"
    (tmp_path / "examples").mkdir()
    os.mkfifo(tmp_path / "examples" / "x.jpg")
    assert _strip(str(tmp_path), {"file": "x.jpg", "size": 8, "true": [0]}) is None
    os.mkfifo(tmp_path / "config.json")
    refused = []
    assert read_config(tmp_path, refused.append) is None
    assert "config.json is not a regular file" in refused[0]


def test_a_report_that_fails_leaves_the_old_one_whole(tmp_path):
    """A manifest that somebody wrote names no other files than a report's."""
    old = {"index.html": GENERATOR.encode(), "a.png": b"a", "b.png": b"b"}
    folder = epath.Path(tmp_path)
    replace_report(folder, old)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    too_long = f"{'x' * 300}.png"
    with pytest.raises(OSError, match="too long"):
        replace_report(folder, {"index.html": b"new", "a.png": b"new", too_long: b""})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / "mine.txt").write_text("")
    (tmp_path.parent / "mine.png").write_text("")
    names = ["../mine.png", "mine.txt", ".", "b.png"]
    (tmp_path / "report_files.json").write_text(json.dumps({"files": names}))
    replace_report(folder, {"index.html": b"new"})
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"a.png", "index.html", "mine.txt", "report_files.json"}
    assert (tmp_path.parent / "mine.png").exists()


@pytest.mark.parametrize(
    "name", ["](x)", "a|b", "`c`", "<b>", "new\nline", "*\\", "\x1b[2J", "\udce9"]
)
def test_names_of_every_kind_stay_one_text(tmp_path, name):
    table = Table("names", [Column("name", numeric=False)], [Row([Cell(name)])])
    text = markdown([table, TextBlock(f"See {name} of **all** in `x`.")])
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", text.splitlines()[-3])) == 2
    assert not re.search(r"(?<!\\)(\]\(|<b>)|\x1b|\udce9", text)
    assert text.splitlines()[-1].endswith("of **all** in `x`.")
    page = Page(html_page("t", [table]))
    assert page.tables == [[["name"], [printable(name)]]]


def test_command(tmp_path):
    small(tmp_path / "a")
    write(tmp_path / "b", [result("location", "lora")])
    out, folders = tmp_path / "out", (f"--workdir={tmp_path / name}" for name in "ab")
    done = run_command("experiments.report", *folders, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert f"Wrote {out / 'index.html'}" in done.stdout
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 13
    failed = run_command("experiments.report", "--workdir", tmp_path / "nowhere")
    assert failed.returncode == 2
    assert "no folder 'results'" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    small(tmp_path)
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UserError, match="cannot be written.*--out"):
        write_report([tmp_path])


def test_sixteen_methods_look_different_and_can_be_seen():
    looks = [style(i) for i in range(16)]
    assert len({look.marker for look in looks}) == 16
    assert len({(look.color, look.linestyle) for look in looks}) == 16

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(set(COLOURS)) == 16
    for colour in COLOURS:
        for background in ("#ffffff", "#171b21"):
            low, high = sorted((luminance(colour), luminance(background)))
            assert (high + 0.05) / (low + 0.05) > 2.5, (colour, background)


def test_a_method_has_one_colour_in_every_figure():
    """Several systems of a method have shades of it; unknown methods have colours that are free."""
    known = list(_METHODS)
    assert styles(known) == [method_style(m) for m in known]
    assert styles(["lora", "fact_tt"])[0] == styles(["linear", "lora"])[1] == method_style("lora")
    looks = styles(["fact_tt", "fact_tt", "mine", "fact_tk+lora", "fact_tt"])
    assert looks[0] == method_style("fact_tt")
    assert len({look.color for look in looks}) == 5
    assert len({look.marker for look in looks}) == 5
    assert set(METHODS_OF_THE_PACKAGE) == {*known, "noah_subnet"}  # which is not trained


@pytest.mark.parametrize(("seeds", "mean"), [((0,), "92.65"), ((0, 1), "93.15")])
def test_error_bars_are_spoken_of_where_there_are_some(tmp_path, seeds, mean):
    """A mean has the same digits in the table, in the figures and in their words."""
    results = [
        {**r, "accuracy": r["accuracy"] + 19.6479}
        for r in grid(("linear", "fact_tt"), seeds, 3, num_factors=9, settings={"rank": 4})
    ]
    blocks = report_blocks(read_study(write(tmp_path, results)))
    captions = [b.caption for b in blocks if isinstance(b, Figure | Table)]
    several = len(seeds) > 1
    assert any("tandard error over seeds" in caption for caption in captions) == several
    figures = {b.name: b for b in blocks if isinstance(b, Figure)}
    assert f">{mean}<" in figures["offline-bars"].svg
    assert f">{mean}<" in figures["offline-bars"].narrow_svg
    assert f"{mean} %" in figures["offline-size"].alt
    assert mean in markdown([b for b in blocks if isinstance(b, Table)])
    assert "2 methods" in next(b.text for b in blocks if isinstance(b, TextBlock))


def test_each_method_has_its_confusion_and_pictures_the_best_first(tmp_path):
    """Also where class names are of scripts that no font of Matplotlib has."""
    names, results = ["猫", "سگ"], []
    shown = {"confusion": [[0, 0, 99], [0, 1, 1], [1, 1, 100]], "class_names": names}
    for method, accuracy in (("linear", 70.0), ("lora", 90.0)):
        examples = {"file": f"{method}.jpg", "size": 8, "true": [0], "predicted": [1]}
        results.append(result(method=method, accuracy=accuracy, examples=examples, **shown))
        (tmp_path / "examples").mkdir(exist_ok=True)
        (tmp_path / "examples" / f"{method}.jpg").write_bytes(strip(1))
    report, page = reported(tmp_path, results)
    html = (report / "index.html").read_text()
    assert re.findall("<option>(.*?)</option>", html) == ["lora (90.0 %)", "linear (70.0 %)"]
    matrices = [t for t in page.tables if t[0] == ["", *names]]
    assert [t[1:] for t in matrices] == [[["猫", "99", "1"], ["سگ", "", "100"]]] * 2
    assert 'class="wrong" style="--p:0.01"' in html
    assert html.count('aria-label="猫, taken for سگ"') == 2
    assert len(list(report.glob("examples-digits*.jpg"))) == 2
    assert "| 猫 | 99 | 1 |" in (report / "report.md").read_text()


def test_the_answer_comes_first(tmp_path):
    """The best method, its lead, cost and certainty; less where less is known."""
    results = [{**r, "num_factors": 1 if r["method"] == "linear" else 10} for r in grid()]
    text = (write_report([write(tmp_path / "a", results)]) / "report.md").read_text()
    answer = text.split("## The answer")[1].split("\n## ")[0]
    assert "Best method: **lora** mean of 2 76.00 ± 0.58 %, the highest of 2 methods." in answer
    assert "Ahead of linear by: **5.00 points** 95 % interval" in answer
    assert "Cost of a task: **10 numbers** 9,999 bytes stored, the head included; linear" in answer
    assert "How sure: **more than the noise of training** p = " in answer
    one = (write_report([write(tmp_path / "b", [result()])]) / "report.md").read_text()
    assert "How sure: **one seed**" in one
    assert "Ahead of" not in one
