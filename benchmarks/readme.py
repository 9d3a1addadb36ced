"""The last results in the tables of benchmarks/README.md and of the docs, from the stored records.

python -m benchmarks.readme
"""

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.common import RESULTS, write_tables

PAGE = Path("benchmarks/README.md")
# A table's row of a stored result: what goes before the last two columns, and the file.
ROW = re.compile(
    r"^(\|(?:[^|]*\|){3})[^|]*\[JSON\]\(results/([\w.]+)\)[^|]*\|[^|]*\|$", re.MULTILINE
)

Record = dict[str, Any]


def _step(record: Record) -> str:
    ours = record["systems"]["ours: FacT-TT 16, dropout"]
    return (
        f"FacT-TT with dropout: {min(ours['seconds']):.2f} s for {record['settings']['batch']} "
        f"images, {ours['time_ratio']:.2f} of PyTorch's time, {ours['memory_ratio']:.2f} of its "
        "memory"
    )


def _alternatives(record: Record) -> str:
    ratios = {name: row["time_ratio"] for name, row in record["alternatives"].items()}
    worst = max(ratios, key=ratios.__getitem__)
    return f"of {len(ratios) - 1} alternatives the slowest, {worst}, takes {ratios[worst]:.2f} ×"


def _consistency(record: Record) -> str:
    forms = record["forms"]["dropout"]
    ratios = ", ".join(f"{n} {row['time_ratio']:.2f} ×" for n, row in forms.items() if n != "plain")
    return f"CPU time of a step with dropout, beside the plain one: {ratios}"


def _evaluate(record: Record) -> str:
    rate = record["stages"]["streamed"]["images_per_s"]
    return f"{rate:.0f} images/s; no prediction under way in {record['idle_share']:.1%} of the time"


def _bank(record: Record) -> str:
    systems, batch = record["systems"], record["settings"]["batch"]
    mixed = systems[f"bank, FacT-TT 16, {batch} tasks"]["ratio_to_merged"]
    peer = next(
        (row["bank_over_peer"] for row in systems.values() if "bank_over_peer" in row), None
    )
    beside = "" if peer is None else f", {peer:.2f} × peft's time for LoRA"
    whole, less = (record["memory"][dtype]["resident_bytes"] / 1e6 for dtype in ("float32", "int8"))
    return (
        f"{batch} images of {batch} tasks take {mixed:.2f} × merged inference of one{beside}; "
        f"{record['settings']['stored']:,} tasks take {whole:.0f} MB, in 8 bits {less:.0f} MB"
    )


def _sweep(record: Record) -> str:
    wall = record["seconds"]["wall"]
    shares = [
        f"{part} {record['seconds'][part] / wall:.0%}" for part in ("train", "evaluate", "compile")
    ]
    programs = sum(record["compilations"].values())
    return (
        f"{record['cells']} tasks, {wall:.0f} s: {', '.join(shares)}; {programs} programs compiled"
    )


def _report(record: Record) -> str:
    size, seconds = record["page_bytes"] / 1e6, statistics.median(record["load_s"])
    return f"{record['results']}; {size:.2f} MB, opens in {seconds:.2f} s"


def _quickstart(record: Record) -> str:
    gains: dict[str, list[float]] = {}
    for row in record["rows"]:
        if "difference" in row:
            gains.setdefault(row["method"], []).append(row["difference"])
    texts = [f"{name} {statistics.fmean(values):+.1f}" for name, values in gains.items()]
    return f"points over a linear probe, mean of three tasks: {', '.join(texts)}"


def _methods(record: Record) -> str:
    values: dict[str, list[float]] = {}
    for row in record["rows"]:
        values.setdefault(row["method"], []).append(row["mean"])
    means = {name: statistics.fmean(v) for name, v in values.items()}
    best = sorted(means, key=lambda name: -means[name])[:3]
    texts = [f"{name} {means[name]:.1f} %" for name in best]
    return f"the best means of {len(means)} methods: {', '.join(texts)}"


def _study(record: Record) -> str:
    cells = [cell for cell in record["cells"] if cell["part"] == "main"]
    arms, tasks, seeds = ({cell[name] for cell in cells} for name in ("arm", "task", "seed"))
    return (
        f"{len(cells)} cells of {len(arms)} methods, {len(tasks)} tasks and {len(seeds)} seeds; "
        f"{record['seconds'] / 3600:.1f} hours in all parts"
    )


def _suite(record: Record) -> str:
    names = {"chance": "chance", "pixels": "pixels", "random": "random ViT", "linear": "probe"}
    means = {names[n]: statistics.fmean(row[n] for row in record["rows"]) for n in names}
    texts = ", ".join(f"{name} {mean:.1f} %" for name, mean in means.items())
    dropped = sum(bool(row["drop"]) for row in record["rows"])
    return f"means of {len(record['rows'])} tasks: {texts}; {dropped} to be dropped"


def _numerics(record: Record) -> str:
    errors = {
        row["setting"]: row["features_merged"]
        for row in record["errors"]
        if row["case"] == "vit_mini, 32 px"
    }
    names = {
        "bfloat16": "bfloat16",
        "a TPU's default": "float32, default of a TPU (emulated)",
        "TensorFloat-32": "float32, TensorFloat-32 (emulated)",
    }
    texts = [f"{name} {errors[setting]:.1e}" for name, setting in names.items()]
    return f"relative error of vit_mini's features: {', '.join(texts)}"


def _rounding(record: Record) -> str:
    rows = record["rows"]
    trained = {(r["task"], r["seed"]): r["accuracy"] for r in rows if r["way"] == "trained"}
    lost: dict[str, list[float]] = {}
    for row in rows:
        if row["rank"] == 8:
            points = trained[row["task"], row["seed"]] - row["accuracy"]
            lost.setdefault(row["way"], []).append(points)
    texts = (f"{way} {statistics.fmean(points):.1f}" for way, points in lost.items())
    return f"rank 16 to 8, points lost in the mean of three tasks: {'; '.join(texts)}"


def _exchange(record: Record) -> str:
    texts = [f"{row['format']} {row['difference']:.1e}" for row in record["rows"]]
    return f"largest difference of logits over the largest: {', '.join(texts)}"


def _faults(record: Record) -> str:
    rows = [row for trial in record.values() if trial != "left out" for row in trial["rows"]]
    lost = sum(len(row["lost"]) for row in rows)
    return f"{sum(row['times'] for row in rows)} faults of {len(rows)} kinds: {lost} losses"


def _fuzz(record: Record) -> str:
    targets = record["targets"].values()
    cases, violations = (sum(t[key] for t in targets) for key in ("cases", "violations"))
    slowest, most = (max(t[k] for t in targets) for k in ("longest_seconds", "most_megabytes"))
    return f"{cases:,} files: {violations} violations; at most {slowest:.2f} s and {most:.0f} MB"


def _serve(record: Record) -> str:
    memory, end = record["memory_mb"], record["at_the_end"]
    return (
        f"{record['checked_answers']:,} answers checked, {record['num_wrong']} wrong; p50 "
        f"{record['p50_ms']:.0f} ms, p99 {record['p99_ms']:.0f} ms; {memory['at_a_third']:.0f} MB "
        f"after a third, {memory['at_the_end']:.0f} MB at the end; exit status "
        f"{end['exit_status']}"
    )


def _scaling(record: Record) -> str:
    def last(name: str) -> Record:
        return record["sweeps"][name]["rows"][-1]

    rank, trials = last("rank"), last("trials")
    return (
        f"rank {rank['value']} takes {rank['time_ratio']:.2f} × rank 1; {trials['value']} trials "
        f"take {trials['time_ratio']:.2f} × one"
    )


def _tpu(record: Record) -> str:
    rows = record["results"]
    step = next(r for r in rows if r.get("mesh") == {"trial": 8, "data": 1})
    most = {r["remat"]: r["largest"] for r in rows if r["program"] == "trials on a chip"}
    return (
        f"a trial on each chip of a v5e-8: {step['gib_per_chip']['total']:.2f} GiB, "
        f"{len(step['collectives'])} collectives; a chip holds {most['none']} trials, "
        f"{most['block']} with remat=block"
    )


def _finish_rate(record: Record) -> str:
    texts = [f"{share} {mean:.1f} %" for share, mean in record["means"].items()]
    return f"means on validation images by share of the training's rate: {', '.join(texts)}"


def _small_files(record: Record) -> str:
    finished = [row for row in record["rows"] if row["how"] == "finished"]
    texts = [f"{row['bits']} {row['lost']:.1f}" for row in finished]
    epochs = record["finish_epochs"]
    return f"points lost by bits of factors/head after {epochs} epochs more: {', '.join(texts)}"


def _dictionary(record: Record) -> str:
    best = {}
    for suite, content in record.items():
        rows = [row for row in content["rows"] if row["way"] in ("learnt", "post hoc")]
        row = max(rows, key=lambda row: row["accuracy"])
        lost = row["lost"].get(row["method"]) or row["lost"]["fact_tt"]
        best[suite] = f"{suite} {lost['mean']:.1f} ({row['way']}, {row['method']} {row['rank']})"
    return f"points that new tasks lose to their own factors, best way: {', '.join(best.values())}"


def _hundred(record: Record) -> str:
    gain, means, sizes = record["gain"], record["means"], record["bytes"]
    tasks, server, mixed = len(record["rows"]), record["server"], record["mixed_batch"]
    whole, small = (sizes[name] / tasks / 1e3 for name in ("fact_tt", "finished"))
    lost = means["fact_tt"] - means["finished"]
    return (
        f"FacT-TT 4 is {gain['mean']:.1f} points above a linear probe, mean of {tasks} tasks; "
        f"{whole:.1f} kB a task, in 4 bits {small:.1f} kB and {lost:.1f} points less; a mixed "
        f"batch takes {min(mixed['bank']) / min(mixed['one_by_one']):.2f} × single calls; "
        f"{server['same_as_the_bank']} of {server['tasks']} answers of the server are the bank's"
    )


RESULT: dict[str, Callable[[Record], str]] = {
    "bank.json": _bank,
    "compare_dinov2.json": _methods,
    "compare_quickstart.json": _methods,
    "consistency.json": _consistency,
    "dictionary.json": _dictionary,
    "evaluate.json": _evaluate,
    "exchange.json": _exchange,
    "faults.json": _faults,
    "fewshot_quickstart.json": _methods,
    "finish_rate.json": _finish_rate,
    "fuzz.json": _fuzz,
    "hundred_tasks.json": _hundred,
    "numerics.json": _numerics,
    "quickstart.json": _quickstart,
    "report.json": _report,
    "rounding.json": _rounding,
    "scaling.json": _scaling,
    "serve.json": _serve,
    "small_files.json": _small_files,
    "step.json": _step,
    "step_alternatives.json": _alternatives,
    "study.json": _study,
    "suite.json": _suite,
    "sweep.json": _sweep,
    "tpu_compile.json": _tpu,
}


def _commits(value: Any) -> Iterator[str]:
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "commit" and item:
            yield item[:7] + "+" * item.endswith("+changes")
        else:
            yield from _commits(item)


def commits(record: Record) -> str:
    """The commits that a record was made of, shortened; "+" where the tree had changes."""
    names = (f"`{commit}`" for commit in dict.fromkeys(_commits(record)))
    return ", ".join(names) or "not recorded"


def _row(match: re.Match[str]) -> str:
    about, file = match.groups()
    record = json.loads((RESULTS / file).read_text())
    return f"{about} {RESULT[file](record)} ([JSON](results/{file})) | {commits(record)} |"


def with_results(page: str) -> str:
    """The page with the result and the commits of each stored record written anew."""
    return ROW.sub(_row, page)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(with_results(PAGE.read_text()))
    print(f"Wrote the results of {PAGE}.")
    for page in pages.TABLES:
        write_tables(page, pages.tables(page))


if __name__ == "__main__":
    main()
