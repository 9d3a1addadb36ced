"""Origin of the numbers: code, weights, data and machines, and warnings about them."""

import json
from collections import Counter
from typing import Any

from fact_jax.data import VTAB
from fact_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Details,
    Items,
    Notice,
    Row,
    Table,
    Text,
)
from fact_jax.report.study import Study, mixed_settings, settings_text

PROTOCOLS = {
    "val": "**Protocol `val`**: what has several candidates (scale, learning rate, weight decay) "
    "is chosen on validation images; then the method is trained anew, on the whole training set, "
    "and the accuracy on test after the last epoch is reported. The test set chooses nothing.",
    "paper": "**Protocol `paper`**: settings are given, training is on the whole set, and the "
    "best of the evaluations on test along the way is reported, as the published numbers do. The "
    "test set chose the epoch: every number is too high, by about half a point.",
}

_REFUSED = 20  # refused files that are named
# Sentences on the data for training and for choosing, by kind of task.
SPLITS = {
    "vtab": "**VTAB-1K**: train800 and val200; the whole training set is both, 1,000 images.",
    "offline": "**The offline suite**: 800 images and 200 to choose on; the whole training set is "
    "both, 1,000 images.",
    "own": "**Own data sets**: sizes are in the table of data below; the whole training set is "
    "`train` and `val` together.",
    "few_shot": "**Few-shot tasks** train on K images a class, drawn anew for each seed; what has "
    "candidates is chosen on their validation list, which is not trained on.",
}


def opening(study: Study) -> list[Block]:
    """One paragraph on what ran, then one per protocol and kind of task."""
    results = study.results
    methods, seeds = len({s.method for s in study.systems}), len(study.seeds)
    variants = ", ".join(sorted({str(r.get("variant")) for r in results}))
    hashes = ", ".join(sorted({h[:12] for r in results if (h := _setting(r, "weights_sha256"))}))
    devices = ", ".join(_environments(study, "device")) or "an unknown device"
    commits = ", ".join(c[:10] for c in _environments(study, "commit")) or "not recorded"
    sizes = ", ".join(f"{v} px" for v in study.values("image_size") if v)
    text = (
        f"{_count(len(results), 'run')}: {_count(methods, 'method')} on "
        f"{_count(len(study.tasks), 'task')} with {_count(seeds, 'seed')} "
        f"({', '.join(map(str, study.seeds))}), from {variants} at {sizes or 'unknown size'} "
        f"(weights sha256 {hashes or 'not recorded'}), on {devices}; fact-jax commit {commits}. "
        f"Read from {', '.join(f'`{w}`' for w in study.workdirs)}."
    )
    if not results:
        return [Text("No cell has finished yet; below are those that failed.")]
    rules = [
        Text(PROTOCOLS.get(p, f"**Protocol {p}**, which this version does not know."))
        for p in study.protocols
    ]
    rules += [Text(text) for kind, text in SPLITS.items() if getattr(study, kind)]
    if any(_setting(r, "train_limit") or _setting(r, "eval_limit") for r in results):
        rules.append(
            Text("**Shortened**: `train_limit` or `eval_limit` took the first images only.")
        )
    return [Text(text), *rules]


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _setting(result: dict[str, Any], key: str) -> Any:
    return result.get("settings", {}).get(key)


def _environments(study: Study, key: str) -> list[str]:
    values = Counter((r.get("environment") or {}).get(key) for r in study.results)
    return [str(v) for v, _ in values.most_common() if v is not None]


def notices(study: Study) -> list[Notice]:
    """Warnings, the worst first."""
    errors = [Notice("error", text) for text in _errors(study)]
    warnings = [Notice("warning", text) for text in _warnings(study)]
    return errors + warnings + [Notice("info", text) for text in _remarks(study)]


def _errors(study: Study) -> list[str]:
    texts, results = [], study.results
    if any(r.get("synthetic") for r in results):
        texts.append(
            "**SYNTHETIC. These results were made up by a program to try this page**; nothing was "
            "trained, and no number below means anything."
        )
    if any(_setting(r, "mock_data") or (r.get("data") or {}).get("mock") for r in results):
        texts.append("Random mock data: these numbers measure nothing.")
    limits = [k for k in ("train_limit", "eval_limit") if any(study.values(k))]
    if limits:
        texts.append(f"Shortened data ({', '.join(limits)}): these numbers measure little.")
    texts += study.refused[:_REFUSED]
    if (more := len(study.refused) - _REFUSED) > 0:
        texts.append(f"{_count(more, 'file')} more could not be read.")
    if study.failures:
        texts.append(f"{_count(len(study.failures), 'cell')} failed: see Failures, at the end.")
    shared, uneven = mixed_settings(study)
    if uneven:
        texts.append(
            f"Seeds of one row were made with different settings: {', '.join(uneven)}. Their mean "
            "is the mean of different things."
        )
    if shared:
        values = "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in shared.items())
        texts.append(
            f"Not all results share these settings, so that rows may not be comparable: {values}."
        )
    if len(study.protocols) > 1:
        texts.append("Results of several protocols stand side by side; they are not comparable.")
    return texts


def _warnings(study: Study) -> list[str]:
    texts = []
    if study.missing:
        names = ", ".join(study.missing[:6]) + (", …" if len(study.missing) > 6 else "")
        texts.append(
            f"Not complete: {_count(len(study.missing), 'cell')} of the last config are still "
            f"missing ({names})."
        )
    if study.missing is None and study.results:
        texts.append("No config.json in the work directory: whether cells are missing is unknown.")
    if study.duplicates:
        cell, counted, other = study.duplicates[0]
        texts.append(
            f"{_count(len(study.duplicates), 'cell')} are there twice with the same settings, "
            f"such as {cell} in `{counted}` (counted) and `{other}` (not counted)."
        )
    if study.vtab and len(study.vtab) < len(VTAB):
        texts.append(
            f"{len(study.vtab)} of VTAB-1K's {len(VTAB)} tasks: no group means and no averages "
            "that could be compared with published ones."
        )
    if study.vtab and (others := {str(r.get("variant")) for r in study.results} - {"vit_b16"}):
        texts.append(
            f"The published rows are of ViT-B/16 at 224 px, not of {', '.join(sorted(others))}."
        )
    if len(study.seeds) == 1:
        texts.append("One seed: no error bars, and nothing is known of the noise of training.")
    replaced: dict[str, dict[str, Any]] = {
        r["task"]: data for r in study.results if (data := r.get("data") or {}).get("mapped")
    }
    for task, data in replaced.items():
        note = f": {data['note']}" if data.get("note") else ""
        texts.append(
            f"{task} was read from version {data.get('used_version')} in the place of "
            f"{data.get('requested_version')}{note}."
        )
    for key, what in (
        ("commit", "commits"),
        ("device", "kinds of device"),
        ("jax", "versions of jax"),
    ):
        if len(values := _environments(study, key)) > 1:
            texts.append(f"Made by several {what}: {', '.join(v[:18] for v in values)}.")
    if any(c.endswith("+changes") for c in _environments(study, "commit")):
        texts.append("Some results were made from a work tree with uncommitted changes.")
    return texts


def _remarks(study: Study) -> list[str]:
    if any("confusion" not in r for r in study.results):
        return [
            "Some results are of an older version, which stored no confusions and no pictures; the "
            "details of their tasks leave these out."
        ]
    return []


def failures(study: Study) -> list[Block]:
    """Message, command and traceback of each failed cell."""
    blocks: list[Block] = []
    for failure in study.failures:
        error = str(failure.get("error") or "error")
        message = str(failure.get("message") or "").strip()
        first = message.splitlines()[0] if message else "no message"
        first = first if len(first) <= 160 else f"{first[:159]}…"
        inside: list[Block] = []
        if message and message != first:
            inside.append(Code(message))
        if command := failure.get("command"):
            inside += [Text("Run it again:"), Code(str(command))]
        if traceback := failure.get("traceback"):
            inside += [Text("Traceback:"), Code(str(traceback))]
        blocks.append(Details(f"{failure['cell']}: {error}: {first}", inside))
    return blocks


def methods_of_counting(study: Study) -> Items:
    """Sentences on how means, errors and tests are computed."""
    means = (
        "**Group mean**: the mean of the three group means, the figure that papers print. "
        "**Mean of 19**: the plain mean of the tasks, 2 to 3 points lower. "
        if study.vtab
        else ""
    )
    return Items(
        [
            "A number in a table is the mean over seeds of the accuracy on test (top-1, %); `±` is "
            "the standard error of that mean, the standard deviation (n - 1) over √n.",
            f"{means}The error of an average is that of the averages which the seeds have each "
            "for itself.",
            "**numbers**: what is trained and stored for a task besides the head, the mean over "
            "tasks where it differs. **bytes**: the stored file, head included.",
            "**grid**: among how many settings the method could choose on validation data.",
            "Every number comes from `results/<cell>.json` of the work directories; `results.csv` "
            "beside this page holds one line a cell, and "
            "`fact_jax.report.records.results_frame` reads them into pandas.",
        ]
    )


def tables(study: Study) -> list[Block]:
    """Versions (a column for each combination), data, settings of the methods."""
    combos = Counter(
        json.dumps(r.get("environment") or {}, sort_keys=True) for r in study.results
    ).most_common()
    environments = [json.loads(text) for text, _ in combos]
    keys = list(dict.fromkeys(k for e in environments for k in e))
    columns = [Column("what", numeric=False)]
    columns += [Column(_count(n, "cell"), numeric=False) for _, n in combos]
    rows = [Row([Cell(k), *(Cell(str(e.get(k) or "–")) for e in environments)]) for k in keys]
    blocks: list[Block] = [Table("Versions, device and commit.", columns, rows, sortable=False)]
    data = []
    for task in study.tasks:
        results = [r for r in study.results if r["task"] == task.name]
        used = [r.get("data") or {} for r in results]
        for version in dict.fromkeys(str(d.get("used_version", "–")) for d in used):
            d = next(d for d in used if str(d.get("used_version", "–")) == version)
            tests = sorted({int(r["num_test"]) for r in results if r.get("num_test")})
            texts = [task.name, d.get("builder"), version, ", ".join(map(str, tests))]
            texts += [d.get("resize"), d.get("jpeg_quality") or "no", d.get("note")]
            data.append(Row([Cell(str(t or "–")) for t in texts]))
    titles = ("task", "builder", "version", "test images", "resize", "JPEG copy", "note")
    named = [Column(t, numeric=t == "test images") for t in titles]
    blocks.append(Table("Data.", named, data, sortable=False))
    settings: list[Block] = []
    for system in study.systems:
        lines = {settings_text(r, "task") for r in system.results}
        settings += [Text(f"**{system.label}**"), *map(Code, sorted(lines))]
    blocks.append(Details("All settings of every method", settings))
    return blocks
