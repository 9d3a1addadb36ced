"""Size of the report of a whole study, and the time in which a browser opens it.

    python -m benchmarks.report [--out FILE.json] [--workdir DIR] [--picture FILE.png]

Makes up results of 19 tasks x 5 methods x 3 seeds (files named `synthetic-...`, a field that says
so, and the page says it in red), writes their report, and opens it in headless Chromium (needs
playwright and a chromium; without them only bytes and seconds of writing are measured).
"""

import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from benchmarks.made_up import result
from fact_jax.data import VTAB, Task
from fact_jax.report.page import write_report
from fact_jax.report.published import published
from fact_jax.sweep.versions import environment

METHODS = {  # row whose accuracies are disturbed, numbers without the head
    "linear": ("linear", 0),
    "vpt_deep": ("vpt_deep", 678_104),
    "lora": ("lora", 294_912),
    "fact_tt": ("fact_tt_le16", 61_440),
    "fact_tk": ("fact_tk_le32", 86_528),
}
SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
EPOCHS, WIDTH, TILE = 100, 768, 64
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
)


def make(folder: Path, tasks: list[str] | None = None, seeds: tuple[int, ...] = (0, 1, 2)) -> int:
    """Writes made-up results of VTAB's tasks (or of some of them); returns how many."""
    rng = np.random.default_rng(0)
    for name in ("results", "examples", "failures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    count = 0
    for task in VTAB.values():
        if tasks and task.name not in tasks:
            continue
        noise = rng.normal(0, 0.5, (len(METHODS), len(seeds)))
        for (method, (row, _)), shifts in zip(METHODS.items(), noise, strict=True):
            for seed, shift in zip(seeds, shifts, strict=True):
                target = published()["vtab1k"][row]["tasks"][task.name] + shift
                cell = _result(task, method, seed, float(np.clip(target, 1, 99.5)), rng)
                write_json(folder / "results" / f"{cell['cell']}.json", cell)
                jpeg = _tiles(cell["examples"], rng)
                (folder / cell["examples"]["file"]).write_bytes(jpeg)
                count += 1
    failed = {
        "cell": "synthetic-dtd-ssf-seed0",
        "method": "ssf",
        "task": "dtd",
        "seed": 0,
        "error": "NonFiniteLoss",
        "message": "The loss became nan in epoch 3.",
        "traceback": "Traceback (most recent call last):\n  (made up)\n",
        "command": "python -m experiments.vtab --config=configs/ssf.py --config.tasks=dtd",
    }
    write_json(folder / "failures" / f"{failed['cell']}.json", failed)
    return count


def _confusion(task: Task, accuracy: float, rng: np.random.Generator) -> np.ndarray:
    """Counts [true, predicted] of this accuracy in %; some classes are hard, errors go to a few."""
    k = task.num_classes
    totals = rng.multinomial(task.test_size, np.full(k, 1 / k))
    hard = rng.normal(0, 0.8, k)
    # Shifts all classes' odds until the mean is right.
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        right = 1 / (1 + np.exp(-(middle + hard)))
        low, high = (
            (middle, high) if 100 * right @ totals / totals.sum() < accuracy else (low, middle)
        )
    counts = np.zeros((k, k), int)
    for true in range(k):
        counts[true, true] = rng.binomial(totals[true], right[true])
        others = rng.dirichlet(np.full(k - 1, 0.2)) if k > 2 else np.ones(1)
        wrong = rng.multinomial(totals[true] - counts[true, true], others)
        counts[true, np.arange(k) != true] += wrong
    return counts


def _result(
    task: Task, method: str, seed: int, accuracy: float, rng: np.random.Generator
) -> dict[str, Any]:
    """A made-up cell of about this accuracy, in %."""
    counts = _confusion(task, accuracy, rng)
    accuracy = 100 * float(np.trace(counts)) / task.test_size
    totals, right = counts.sum(1), np.diag(counts)
    steps = np.arange(1, EPOCHS + 1)
    pace = 10 + 25 * (1 - accuracy / 100) + 3 * list(METHODS).index(method)
    losses = (0.05 + 3 * np.exp(-steps / pace) + rng.normal(0, 0.01, EPOCHS) ** 2).tolist()
    tests = (accuracy * (1 - 0.6 * np.exp(-steps / 20)) + rng.normal(0, 0.3, EPOCHS)).tolist()
    tests[-1] = accuracy
    numbers, head = METHODS[method][1], (WIDTH + 1) * task.num_classes
    selection = {
        f"scale={s:g}": accuracy - 2 * abs(np.log10(s)) + float(rng.normal(0, 0.7)) for s in SCALES
    }
    grid = {} if method == "linear" else {"selection": selection, "grid_size": len(SCALES)}
    cell = f"synthetic-{task.name}-{method}-seed{seed}"
    wrong = np.argwhere((counts > 0) & ~np.eye(len(counts), dtype=bool))
    wrong = rng.permutation(wrong)[:8].tolist()
    correct = rng.permutation(np.nonzero(right)[0])[:8].tolist()
    return result(
        *(task.name, method, seed, accuracy),
        **grid,
        synthetic=True,
        cell=cell,
        group=task.group,
        num_factors=numbers,
        num_head=head,
        factor_file_bytes=4 * (numbers + head) + 900,
        num_test=task.test_size,
        losses=losses,
        test_accuracies=[a if e % 10 == 0 else None for e, a in zip(steps, tests, strict=True)],
        epochs_run=EPOCHS,
        settings={"epochs": EPOCHS},
        data={"builder": task.builder, "requested_version": task.versions, "note": "synthetic"},
        environment=environment(),
        class_names=[f"class {i}" for i in range(task.num_classes)],
        confusion=[[int(t), int(p), int(counts[t, p])] for t, p in np.argwhere(counts)],
        per_class_accuracy=[
            100 * float(r) / int(n) if n else None for r, n in zip(right, totals, strict=True)
        ],
        examples={
            "file": f"examples/{cell}.jpg",
            "size": TILE,
            "true": [t for t, _ in wrong] + correct,
            "predicted": [p for _, p in wrong] + correct,
        },
    )


def _tiles(examples: dict[str, Any], rng: np.random.Generator) -> bytes:
    """A picture as heavy as a photograph: smooth colours, an outline, noise."""
    images = []
    for true in examples["true"]:
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 10, (TILE, TILE, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        ImageDraw.Draw(image).text(
            (6, 4), str(true), fill="white", stroke_width=1, stroke_fill="black"
        )
        images.append(np.asarray(image))
    content = io.BytesIO()
    Image.fromarray(np.concatenate(images, axis=1)).save(content, "JPEG", quality=85)
    return content.getvalue()


def open_page(page: Path, rounds: int = 5, picture: Path | None = None) -> list[float] | None:
    """Seconds from navigation to the end of the load event and the next frame, each in a new tab;
    None where no browser is at hand. The last one is pictured."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER_ARGUMENTS))
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            start = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.evaluate("() => new Promise(d => requestAnimationFrame(() => setTimeout(d)))")
            seconds.append(time.perf_counter() - start)
        if picture is not None:  # narrower, so that a page or a phone can show it
            tab.set_viewport_size({"width": 800, "height": 860})
            tab.screenshot(path=picture)
        browser.close()
    return seconds


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--workdir", type=Path, help="keeps the results and the report there")
    parser.add_argument("--picture", type=Path, help="a PNG of the page's top, as in docs/")
    parser.add_argument("--tasks", default="", help="some of VTAB's, for a quick try")
    a = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="synthetic-report-") as temporary:
        folder = a.workdir or Path(temporary)
        cells = make(folder, a.tasks.split(",") if a.tasks else None)
        start = time.perf_counter()
        report = Path(write_report([folder]))
        written = time.perf_counter() - start
        page = report / "index.html"
        content = {
            "results": f"synthetic: {cells} cells",
            "page_bytes": page.stat().st_size,
            "folder_bytes": sum(p.stat().st_size for p in report.iterdir()),
            "write_s": written,
            "load_s": open_page(page, picture=a.picture),
            "environment": environment(),
        }
    table = Table("what", "measured", "limit")
    loads = content["load_s"]
    opened = "no browser at hand"
    if loads is not None:
        middle, low, high = statistics.median(loads), min(loads), max(loads)
        opened = f"{middle:.2f} s (of {len(loads)}: {low:.2f} to {high:.2f})"
    table.add_row("cells (synthetic)", str(cells), "")
    table.add_row("page", f"{content['page_bytes'] / 1e6:.2f} MB", "5 MB")
    table.add_row("opens in", opened, "2 s")
    table.add_row("is written in", f"{written:.0f} s", "")
    console.print(table)
    if a.out:
        write_json(a.out, content)
        console.print(f"Wrote {a.out}.")


if __name__ == "__main__":
    main()
