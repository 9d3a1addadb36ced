"""Shows what a sweep would do: its cells, their cost, and which of them are done."""

import dataclasses
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict
from rich.table import Table

from fact_jax.backbone.config import get_variant
from fact_jax.cli.terminal import Console
from fact_jax.data import Task, get_task, open_task
from fact_jax.report.terminal import print_table
from fact_jax.sweep.cost import Cost, cell_cost, seconds_per_flop
from fact_jax.sweep.plan import OF_FILES, Cell, chosen, make_plan, schedule_warning
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.settings import RunSettings, SweepSettings
from fact_jax.sweep.speed import measure_speed
from fact_jax.sweep.store import Store
from fact_jax.text import count_of


def show_plan(
    sweep_config: ConfigDict,
    workdir: str,
    console: Console,
    elsewhere: str = "",
    only: Sequence[str] = (),
) -> None:
    """Prints a line a cell, or for `only` these, and the sums. Writes nothing, and needs neither
    weights nor data.

    Times are by FLOPs, at the rate of the cells that are finished in the work directory. Without
    any a step is timed here, unless the cells run `elsewhere` (a launcher's name).
    """
    cells, store = chosen(make_plan(sweep_config), only), Store(workdir, create=False)
    sweep = read_settings(sweep_config)
    vit = get_variant(sweep.run.variant).replace(image_size=sweep.run.image_size)
    tasks = {name: _with_sizes(name, sweep) for name in dict.fromkeys(c.task for c in cells)}
    costs = [cell_cost(cell, vit, tasks[cell.task]) for cell in cells]
    results = [store.read_result(cell.name) for cell in cells]
    finished = {
        cell.name: (cost, result)
        for cell, cost, result in zip(cells, costs, results, strict=True)
        if result and _as_planned(cell, result) and "cell" in result.seconds
    }
    left = [cost for cost, result in zip(costs, results, strict=True) if result is None]
    rate, source = _rate(sweep.run, [*finished.values()], left, elsewhere)
    table = Table(title=f"{count_of(len(cells), 'cell')} in {store.workdir}", title_justify="left")
    table.add_column("cell")
    for name in ("trainings", "epochs", "images", "TFLOP", "time"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for cell, cost, result in zip(cells, costs, results, strict=True):
        texts = _texts(cost, rate)
        if result and cell.name in finished:
            texts[-1] = time_text(result.seconds["cell"])
        table.add_row(cell.name, *texts, _state(store, cell, result))
    for name, some in (("all", costs), ("left", left)):
        table.add_section()
        total = Cost(*map(sum, zip(Cost(0, 0, 0, 0, 0), *some, strict=True)))
        table.add_row(f"{name}: {count_of(len(some), 'cell')}", *_texts(total, rate), "")
    print_table(console, table)
    for name, task in tasks.items():
        if task.folder and not task.num_classes:
            console.print(f"{name}: its folder is not there, so its images are not counted.")
    if cold := schedule_warning(sweep_config, cells):
        console.print(cold)
    console.print(
        "Images: trained on and predicted. TFLOP: the frozen network's matrix products, forward "
        f"and backward. {source}"
    )


def _rate(
    run: RunSettings,
    finished: list[tuple[Cost, Result]],
    left: list[Cost],
    elsewhere: str,
) -> tuple[float | None, str]:
    """Seconds per FLOP, if they are known, and a sentence that says where they come from."""
    if (rate := seconds_per_flop(finished)) is not None:
        return rate, "Time: what it took, or will take at the rate of the cells that are done here."
    if not left:
        return None, ""
    hours = sum(cost.flops for cost in left) / 1e14 / 3600
    later = f"What is left takes {hours:.2g} hours at 100 TFLOP/s; as soon as a cell is done, "
    later += "times are shown here."
    if elsewhere:
        return None, f"{later} Nothing is timed here, since the cells run under {elsewhere}."
    vit = get_variant(run.variant).replace(image_size=run.image_size, **run.network)
    try:
        speed = measure_speed(vit, run.batch_size)
    except (RuntimeError, MemoryError) as error:  # another process has the device
        reason = " ".join(str(error).split())[:200]
        return None, f"{later} Nothing could be timed here: {reason}"
    devices = f"{speed.devices} x {speed.device}" if speed.devices > 1 else speed.device
    return 1 / (speed.flops_per_second * speed.devices), (
        f"Time: an estimate for this machine ({devices}) at {speed.flops_per_second / 1e12:.2g} "
        f"TFLOP/s a device, timed just now: forward and backward through {speed.how}. Compiling, "
        "reading and storing come on top. As soon as a cell is done, its rate is taken."
    )


def _with_sizes(name: str, sweep: SweepSettings) -> Task:
    """The task, with the sizes of its folder, if it has one. UserError for a folder without sense.

    A folder that is not there may be where the cells will run.
    """
    task, settings = get_task(name), dataclasses.replace(sweep.data, skip_damaged=False)
    if not task.folder or (
        settings.data_dir
        and not (epath.Path(settings.data_dir).expanduser() / task.folder).exists()
    ):
        return task
    return open_task(task, settings).task


def _texts(cost: Cost, rate: float | None) -> list[str]:
    images = f"{cost.train_images + cost.test_images:,}"
    time = "-" if rate is None else time_text(cost.flops * rate)
    return [f"{cost.trainings:,}", f"{cost.epochs:,}", images, f"{cost.flops / 1e12:,.1f}", time]


def time_text(seconds: float) -> str:
    """A duration in hours and minutes."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min" if minutes else "< 1 min"


def _as_planned(cell: Cell, result: Result) -> bool:
    """Whether the result was made with the cell's settings; files are not compared."""
    settings = {k: v for k, v in result.settings.items() if k not in OF_FILES}
    return settings == cell.as_stored


def _state(store: Store, cell: Cell, result: Result | None) -> str:
    if result is not None:
        planned = _as_planned(cell, result)
        return f"done: {result.accuracy:.1f} %" if planned else "done with other settings"
    failure = store.read_failure(cell.name)
    return f"failed: {failure.get('error')}" if failure else "to do"
