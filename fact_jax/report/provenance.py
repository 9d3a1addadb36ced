"""Origin of the numbers: code, weights, data and machines, and warnings about them."""

import json
from collections import Counter
from typing import Any

from fact_jax.report.blocks import Block, Code, Details, Notice, Text
from fact_jax.report.prose import paragraphs
from fact_jax.report.rows import settings_text
from fact_jax.report.study import Study, mixed_settings, sources_of
from fact_jax.report.table import Cell, Column, Row, Table
from fact_jax.text import count_of


def opening(study: Study) -> Text:
    """One paragraph on what ran."""
    results = study.results
    if not results:
        return Text("No cell has finished yet; below are those that failed.")
    variants = ", ".join(sorted({str(r.variant) for r in results}))
    sizes = ", ".join(f"{v} px" for v in study.values("image_size") if v)
    protocols = " and ".join(f"`{protocol}`" for protocol in study.protocols)
    methods = {s.method for s in study.systems}
    return Text(
        f"{count_of(len(results), 'run')}: {count_of(len(methods), 'method')} "
        f"on {count_of(len(study.tasks), 'task')} with {count_of(len(study.seeds), 'seed')} "
        f"({', '.join(map(str, study.seeds))}), from {variants} at {sizes or 'unknown size'}, "
        f"protocol {protocols}. Read from {', '.join(f'`{w}`' for w in study.workdirs)}."
    )


def _limits(study: Study) -> list[str]:
    """Settings that shorten the data, as far as they are used."""
    return [key for key in ("train_limit", "eval_limit") if any(study.values(key))]


def _environments(study: Study, key: str) -> list[str]:
    """Devices, commits and versions that results were made with, the most frequent first."""
    values = Counter(r.environment.get(key) for r in study.results)
    return [str(v) for v, _ in values.most_common() if v is not None]


def notices(study: Study) -> list[Notice]:
    """Warnings, the worst first."""
    shared, uneven = mixed_settings(study)
    results = study.results
    lines = paragraphs(
        "notices",
        study=study,
        shared=shared,
        uneven=uneven,
        limits=_limits(study),
        synthetic=any(r.synthetic for r in results),
        mock=any(r.settings.get("mock_data") or r.data.get("mock") for r in results),
        others=sorted({str(r.variant) for r in results} - {"vit_b16"}),
        several=[t.name for t in study.tasks if len(sources_of(study, t)) > 1],
        broken=[r.cell for r in results if r.broke_down],
        replaced={r.task: r.data for r in results if r.data.get("mapped")},
        environments={key: _environments(study, key) for key in ("commit", "device", "jax")},
        uncommitted=any(c.endswith("+changes") for c in _environments(study, "commit")),
        older=any(r.version == 1 and r.confusion is None for r in results),
    )
    kinds: dict[str, Any] = {kind: kind for kind in ("error", "warning", "info")}
    return [Notice(kinds[kind], text) for kind, text in (line.split(": ", 1) for line in lines)]


def origin(study: Study) -> list[Block]:
    """The origin of the numbers: protocols, data, counting, versions and settings."""
    if not study.results:
        return []
    hashes = sorted({str(h)[:12] for h in study.values("weights_sha256") if h})
    lines = paragraphs(
        "origin",
        study=study,
        limits=_limits(study),
        devices=", ".join(_environments(study, "device")) or "an unknown device",
        commits=", ".join(c[:10] for c in _environments(study, "commit")) or "not recorded",
        hashes=", ".join(hashes) or "not recorded",
    )
    settings: list[Block] = []
    for system in study.systems:
        texts = {settings_text(r, "task") for r in system.results}
        settings += [Text(f"**{system.label}**"), *map(Code, sorted(texts))]
    return [
        *map(Text, lines),
        _versions(study),
        _data(study),
        Details("All settings of every method", settings),
    ]


def _versions(study: Study) -> Table:
    """Versions, device and commit, a column for each combination."""
    combos = Counter(json.dumps(r.environment, sort_keys=True) for r in study.results).most_common()
    environments = [json.loads(text) for text, _ in combos]
    keys = list(dict.fromkeys(k for e in environments for k in e))
    columns = [Column("what", numeric=False)]
    columns += [Column(count_of(n, "cell"), numeric=False) for _, n in combos]
    rows = [Row([Cell(k), *(Cell(str(e.get(k) or "")) for e in environments)]) for k in keys]
    return Table("Versions, device and commit.", columns, rows, sortable=False)


def _data(study: Study) -> Table:
    """The data of each task, a row for each source that was read."""
    rows = []
    for task in study.tasks:
        results = [r for r in study.results if r.task == task.name]
        tests = ", ".join(map(str, sorted({r.num_test for r in results if r.num_test})))
        for d in sources_of(study, task).values():
            texts = [task.name, d.get("builder"), d.get("used_version"), tests, d.get("resize")]
            texts += [d.get("jpeg_quality") or "no", d.get("note")]
            rows.append(Row([Cell(str(text or "")) for text in texts]))
    titles = ("task", "builder", "version", "test images", "resize", "JPEG copy", "note")
    columns = [Column(t, numeric=t == "test images") for t in titles]
    return Table("Data.", columns, rows, sortable=False)


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
