"""The offline suite: three small tasks on real images that need no network. It is not VTAB-1K.

docs/bundled_model.md tells sources, licences and how the splits were kept apart.
"""

from functools import partial
from typing import Any

from fact_jax.data import labels
from fact_jax.data.tasks import Task, make_sizes, make_splits

_COMMON: dict[str, Any] = {
    "group": "offline",
    "versions": "1.*.*",
    "splits": make_splits("validation", "test", "train"),
    "builder_module": "fact_jax.data.offline.builders",
    "offline": True,
}

_TASKS = (
    Task(
        "digits",
        builder="offline_digits",
        num_classes=10,
        sizes=make_sizes(797),
        label_features={"label": 10},
        note="scikit-learn's digits (UCI optdigits), split in the file's order, not at random",
        **_COMMON,
    ),
    Task(
        "fashion",
        builder="offline_fashion",
        num_classes=10,
        sizes=make_sizes(1000),
        label_features={"label": 10},
        note="the first 1,000 training and the first 1,000 test images of Fashion-MNIST",
        **_COMMON,
    ),
    Task(
        "location",
        builder="offline_sprites",
        num_classes=16,
        sizes=make_sizes(1000),
        label=partial(labels.binned, feature="label_x_position", width=2.0),
        label_features={"label_x_position": 32},
        binary=True,
        note="VTAB's dSprites location, on sprites that this package draws by the same factors",
        **_COMMON,
    ),
)

OFFLINE: dict[str, Task] = {task.name: task for task in _TASKS}
