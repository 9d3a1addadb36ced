"""The offline suite: ten small tasks that need no network. It is not VTAB-1K.

docs/offline_suite.md tells sources, licences, how the splits were kept apart, and known faults.
"""

from functools import partial
from typing import Any

from fact_jax.data import labels
from fact_jax.data.tasks import Task, make_sizes, make_splits

_SPLITS = make_splits("validation", "test", "train")


def _task(name: str, classes: int, builder: str, test: int, **others: Any) -> Task:
    """A task that comes with the package, with this number of test images."""
    return Task(
        *(name, "offline", classes, builder, "1.*.*", _SPLITS, make_sizes(test)),
        builder_module="fact_jax.data.offline.builders",
        offline=True,
        **others,
    )


def _stored(feature: str, classes: int) -> dict[str, Any]:
    """The label is the stored class `feature`."""
    return {
        "label": partial(labels.plain, feature=feature),
        "label_features": {feature: classes},
    }


def _binned(feature: str, values: int, width: float) -> dict[str, Any]:
    """The label is the bin, of `width` values, that the factor `feature` of a sprite is in."""
    return {
        "label": partial(labels.binned, feature=feature, width=width),
        "label_features": {feature: values},
        "binary": True,
    }


_TASKS = (
    _task(
        *("digits", 10, "offline_digits", 797),
        note="scikit-learn's digits (UCI optdigits), split in the file's order, not at random",
    ),
    _task(
        *("fashion", 10, "offline_fashion", 1000),
        note="the first 1,000 training and the first 1,000 test images of Fashion-MNIST",
    ),
    _task(
        *("emoji", 9, "offline_emoji", 873),
        note="Twemoji by Unicode's categories; variants of one emoji are in one split",
    ),
    _task(
        *("textile", 3, "offline_textile", 1000),
        note="simulated textile without fault, with a local and with a global one (Megahed et al.)",
    ),
    _task(
        *("script", 10, "offline_script", 1000),
        note="the script of a letter; fonts of the test are not those of training",
    ),
    _task(
        *("location", 16, "offline_sprites", 1000),
        **_binned("label_x_position", 32, 2.0),
        note="VTAB's dSprites location, on sprites that this package draws by the same factors",
    ),
    _task(
        *("orientation", 16, "offline_sprites", 1000),
        **_binned("label_orientation", 40, 2.5),
        note="VTAB's dSprites orientation, on the sprites of location",
    ),
    _task(
        *("count", 8, "offline_scenes", 1000),
        **_stored("label_count", 8),
        note="VTAB's CLEVR count, on scenes that this package draws",
    ),
    _task(
        *("distance", 6, "offline_scenes", 1000),
        **_stored("label_distance", 6),
        note="VTAB's CLEVR distance, on the scenes of count",
    ),
    _task(
        *("azimuth", 18, "offline_solids", 1000),
        **_stored("label_azimuth", 18),
        note="smallNORB's azimuth, on solids that this package draws; the test has other solids",
    ),
)

OFFLINE: dict[str, Task] = {task.name: task for task in _TASKS}

# As VTAB divides its tasks; for averages by group.
OFFLINE_GROUPS = {
    "natural": ("digits", "fashion", "emoji"),
    "specialized": ("textile", "script"),
    "structured": ("location", "orientation", "count", "distance", "azimuth"),
}
