"""The tables of the docs about the life after training, from the stored results.

`python -m benchmarks.readme` writes them into the pages, behind marks such as `<!-- bank_time -->`.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rounding import TRAINED, mean_of
from benchmarks.common import NAMES, RESULTS, markdown

Record = dict[str, Any]


def points(mean: float, error: float | None = None) -> str:
    """A number of points, with its standard error where there is one; never minus zero."""
    text = f"{mean:.1f}".replace("-0.0", "0.0")
    return text if error is None else f"{text} ± {error:.1f}"


def bank_time(record: Record) -> str:
    """Seconds of a batch by system."""
    batch = record["settings"]["batch"]
    rows = [
        [name, f"{1e3 * min(row['seconds']):,.0f}", f"{row['ratio_to_merged']:.2f}"]
        for name, row in record["systems"].items()
    ]
    return markdown(["system", f"ms for {batch} images", "over the first row"], rows)


def bank_methods(record: Record) -> str:
    """Each method in the bank, beside merged weights of one task."""
    rows = [
        [
            NAMES[row["method"]],
            f"{1e3 * min(row['predictor_seconds']):,.0f}",
            f"{1e3 * min(row['bank_seconds']):,.0f}",
            f"{row['ratio']:.2f}",
            f"{1e3 * min(row['merge_seconds']):,.0f}",
        ]
        for row in record.get("methods", ())
    ]
    head = ["method", "one task, ms", "bank, ms", "ratio", "merging, ms"]
    return markdown(head, rows) if rows else ""


def bank_memory(record: Record) -> str:
    """Memory of the stored tasks by the type of their numbers."""
    stored, errors = record["settings"]["stored"], record.get("errors", {})
    rows = []
    for dtype, row in record["memory"].items():
        sizes = [row[f"{part}_bytes"] / 1e6 for part in ("factor", "head", "resident")]
        error = [f"{max(errors[dtype].values()):.0e}"] if errors else []
        texts = [f"{size:,.0f}" for size in sizes]
        rows.append([dtype, *texts, f"{row['added_per_s']:,.0f}", *error])
    head = [f"{stored:,} tasks as", "factors, MB", "heads, MB", "process, MB", "tasks/s added"]
    return markdown([*head, *(["error of logits"] if errors else [])], rows)


def exchange(record: Record) -> str:
    """The largest difference of logits by format."""
    names = {"flatbuffers": "jax", "jax2onnx": ""}  # what opens a format, if not the package
    versions = {**record["environment"], **record["versions"]}
    rows = []
    for row in record["rows"]:
        packages = filter(None, (names.get(name, name) for name in row["opened_by"]))
        difference = f"{row['difference']:.1e}" if row["difference"] else "0"
        opened = ", ".join(f"{name} {versions[name]}" for name in packages)
        rows.append([f"`{row['format']}`", opened, difference])
    return markdown(["format", "opened by", "difference"], rows, texts=2)


def serve(record: Record) -> str:
    """The trial of the server in figures."""
    memory, end, settings = record["memory_mb"], record["at_the_end"], record["settings"]
    rows = [
        ["duration and tasks", f"{settings['seconds']:.0f} s, {settings['tasks']} tasks"],
        ["answers that were compared with `Predictor`'s", f"{record['checked_answers']:,}"],
        ["wrong answers", f"{record['num_wrong']}"],
        ["half of the answers within", f"{record['p50_ms']:.0f} ms"],
        ["99 % of the answers within", f"{record['p99_ms']:.0f} ms"],
        ["memory after a third of the time", f"{memory['at_a_third']:.0f} MB"],
        ["memory at the end", f"{memory['at_the_end']:.0f} MB"],
        ["files opened outside the folder", f"{len(record['opened_outside'])}"],
        ["requests before SIGTERM, answered after it", f"{end['sent_before_answered_after']}"],
        ["exit status", f"{end['exit_status']}"],
    ]
    return markdown(["measure", "value"], rows)


def serve_requests(record: Record) -> str:
    """How each kind of request was answered."""
    rows = [
        [kind, ", ".join(f"{status} ({count:,} ×)" for status, count in sorted(counts.items()))]
        for kind, counts in record["statuses"].items()
    ]
    return markdown(["request", "answers: HTTP status (times)"], rows, texts=2)


def small_files(record: Record) -> str:
    """Points lost by bits of factors and head."""
    by_bits: dict[str, dict[str, Record]] = {}
    for row in record["rows"]:
        by_bits.setdefault(row["bits"], {})[row["how"]] = row
    errors = len(record["seeds"]) > 1
    finished = f"finished, {record['finish_epochs']} epochs"
    hows = {"rounded": "rounded", "finished": finished, "trained": "trained"}
    hows = {how: title for how, title in hows.items() if how in by_bits[record["rows"][0]["bits"]]}
    rows = []
    for bits, ways in by_bits.items():
        texts = [points(ways[how]["lost"], ways[how]["error"] if errors else None) for how in hows]
        rows.append([bits.replace("/", " / "), f"{ways['rounded']['bytes']:,}", *texts])
    whole = f"{record['float32']['bytes']:,}"
    rows.insert(0, ["32 / 32", whole, "0.0", *[""] * (len(hows) - 1)])
    return markdown(["bits of factors / head", "bytes", *hows.values()], rows)


def rounding(record: Record) -> str:
    """Points lost by rank and way, means of tasks and seeds, with errors where there are seeds."""
    rows, epochs = record["rows"], record.get("finish_epochs")
    whole = {(row["task"], row["seed"]): row["accuracy"] for row in rows if row["way"] == TRAINED}
    ways = {
        "plain": "plain",
        "weighted": "by pictures",
        "plain, finished": f"plain, {epochs} epochs",
        "weighted, finished": f"by pictures, {epochs} epochs",
        "fresh": "trained at this rank",
    }
    ways = {way: title for way, title in ways.items() if any(row["way"] == way for row in rows)}
    lines = []
    for rank in sorted({row["rank"] for row in rows}, reverse=True):
        groups = {way: [r for r in rows if (r["way"], r["rank"]) == (way, rank)] for way in ways}
        if not all(groups.values()):
            continue
        some, texts = groups["plain"], []
        for group in groups.values():
            lost = mean_of(
                {
                    (row["task"], row["seed"]): whole[row["task"], row["seed"]] - row["accuracy"]
                    for row in group
                }
            )
            texts.append(points(lost.mean, lost.error))
        size = f"{_mean(some, 'bytes'):,.0f}"
        lines.append([str(rank), size, f"{_mean(some, 'error'):.2f}", *texts])
    return markdown(["rank", "bytes", "error, plain", *ways.values()], lines)


def _mean(rows: Sequence[Record], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


# Columns of hundred_tasks.json, as its tables call them.
WAYS = {
    "linear": "Linear probe",
    "fact_tt": "FacT-TT, rank 4",
    "rounded": "FacT-TT, 4 bits, head 1 bit: rounded",
    "finished": "FacT-TT, 4 bits, head 1 bit: finished",
    "ensemble": "FacT-TT, all seeds as an ensemble",
    "averaged": "FacT-TT, all seeds averaged to one",
}
DATA = {"digits": "digits", "fashion": "garments", "location": "places"}


def hundred_accuracy(record: Record) -> str:
    """Mean accuracy over the tasks of each data set, and over all."""
    rows = []
    for way, title in WAYS.items():
        values = {row["task"]: row[way] for row in record["rows"]}
        groups = [[v for task, v in values.items() if f"_{d}_" in task] for d in DATA]
        rows.append([title, *(f"{statistics.fmean(group):.1f}" for group in groups)])
        rows[-1].append(f"{statistics.fmean(values.values()):.1f}")
    return markdown(["accuracy on test, %", *DATA.values(), "all tasks"], rows)


def hundred_bytes(record: Record) -> str:
    """Bytes of a task's file and of all of them."""
    count, titles = len(record["rows"]), {**WAYS, "full": "A whole network"}
    rows = [
        [titles[name], f"{record['bytes'][name] / count:,.0f}", f"{record['bytes'][name]:,}"]
        for name in ("full", "fact_tt", "finished", "linear")
    ]
    return markdown(["file", "bytes a task", f"bytes of {count} tasks"], rows)


def hundred_together(record: Record) -> str:
    """Two tasks in one network, beside each alone."""
    rows = [row for row in record["rows"] if "shared" in row]
    texts = []
    for data in ("digits", "fashion"):
        some = [row for row in rows if f"_{data}_" in row["task"]]
        means = [_mean(some, name) for name in ("first_seed", "shared")]
        texts.append([DATA[data], str(len(some)), *(f"{mean:.1f}" for mean in means)])
    return markdown(["tasks, one seed", "number", "alone", "two in one network"], texts)


def hundred_mixed(record: Record) -> str:
    """Time of a batch with an image of each task."""
    mixed = record["mixed_batch"]
    titles = {
        "bank": "one batch of the bank",
        "one_by_one": "one call for each task's own network",
    }
    rows = [[title, f"{1e3 * min(mixed[name]):,.0f}"] for name, title in titles.items()]
    return markdown([f"{mixed['images']} images of {mixed['images']} tasks", "ms"], rows)


# Where a dictionary comes from, as its table calls it.
DICTIONARIES = {
    "own": "none: factors of its own",
    "learnt": "learnt by the other tasks",
    "post hoc": "made of the other tasks",
    "random": "random directions",
}


def dictionary(record: Record, suite: str) -> str:
    """New tasks with a dictionary: bytes, accuracy and points lost to their own factors."""
    content = record.get(suite)
    if content is None:
        return ""
    order = list(DICTIONARIES)
    rows = sorted(
        content["rows"], key=lambda r: (order.index(r["way"]), r["method"], r["rank"] or 0)
    )
    methods = list(rows[0]["lost"])
    lines = []
    for row in rows:
        size = [str(row["rank"] or ""), f"{row['numbers']:,}", f"{row['small_bytes']:,}"]
        lost = [points(row["lost"][method]["mean"]) for method in methods]
        way = DICTIONARIES[row["way"]]
        lines.append([way, NAMES[row["method"]], *size, f"{row['accuracy']:.1f}", *lost])
    heads = [f"lost to own {NAMES[method]}" for method in methods]
    columns = ["dictionary", "method", "rank", "numbers", "bytes at 4/1", "accuracy, %"]
    return markdown([*columns, *heads], lines, texts=2)


def suite(record: Record) -> str:
    """Test accuracies on the offline suite, from chance to tuned ViTs."""
    columns = {
        **{"chance": "chance", "pixels": "pixels", "random": "random ViT", "probe": "regression"},
        **{"linear": "linear probe", "full": "full fine-tuning", "fact_tt": "FacT-TT 16"},
    }
    lines = []
    for row in record["rows"]:
        scores = [f"{row[name]:.1f}" if name in row else "" for name in columns]
        lines.append([row["task"], row["group"], str(row["classes"]), f"{row['test']:,}", *scores])
    return markdown(["task", "group", "classes", "test images", *columns.values()], lines, texts=2)


Table = Callable[[Record], str]
# The pages, the marks in them, and the record that each table is made of.
TABLES: dict[Path, dict[str, tuple[str, Table]]] = {
    Path("docs/tutorials/many_tasks.md"): {
        "hundred_accuracy": ("hundred_tasks.json", hundred_accuracy),
        "hundred_bytes": ("hundred_tasks.json", hundred_bytes),
        "hundred_mixed": ("hundred_tasks.json", hundred_mixed),
        "hundred_together": ("hundred_tasks.json", hundred_together),
    },
    Path("docs/dictionary.md"): {
        "dictionary_offline": ("dictionary.json", lambda record: dictionary(record, "offline")),
        "dictionary_pairs": ("dictionary.json", lambda record: dictionary(record, "pairs")),
    },
    Path("docs/offline_suite.md"): {"suite": ("suite.json", suite)},
    Path("docs/exchange.md"): {"exchange": ("exchange.json", exchange)},
    Path("docs/files.md"): {"small_files": ("small_files.json", small_files)},
    Path("docs/benchmarks.md"): {
        "bank_time": ("bank.json", bank_time),
        "bank_methods": ("bank.json", bank_methods),
        "bank_memory": ("bank.json", bank_memory),
        "serve": ("serve.json", serve),
        "serve_requests": ("serve.json", serve_requests),
        "small_files": ("small_files.json", small_files),
        "rounding": ("rounding.json", rounding),
    },
}


def tables(page: Path) -> dict[str, str]:
    """The Markdown table of each mark in a page; empty where the record is not there yet."""
    records = {
        file: json.loads((RESULTS / file).read_text()) if (RESULTS / file).exists() else None
        for file, _ in TABLES[page].values()
    }
    return {
        mark: table(records[file]) if records[file] else ""
        for mark, (file, table) in TABLES[page].items()
    }
