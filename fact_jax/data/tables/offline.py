"""The offline suite: three small tasks on real images that need no network. It is not VTAB-1K.

docs/bundled_model.md tells sources, licences and how the splits were kept apart.
"""

from functools import partial

from fact_jax.data import labels
from fact_jax.data.tasks import Task, make_sizes, make_splits

_SPLITS = make_splits("validation", "test", "train")
_BUILDERS = "fact_jax.data.offline.builders"

_TASKS = (
    Task(
        *("digits", "offline", 10, "offline_digits", "1.*.*", _SPLITS, make_sizes(797)),
        note="scikit-learn's digits (UCI optdigits), split in the file's order, not at random",
        builder_module=_BUILDERS,
        offline=True,
    ),
    Task(
        *("fashion", "offline", 10, "offline_fashion", "1.*.*", _SPLITS, make_sizes(1000)),
        note="the first 1,000 training and the first 1,000 test images of Fashion-MNIST",
        builder_module=_BUILDERS,
        offline=True,
    ),
    Task(
        *("location", "offline", 16, "offline_sprites", "1.*.*", _SPLITS, make_sizes(1000)),
        label=partial(labels.binned, feature="label_x_position", width=2.0),
        label_features={"label_x_position": 32},
        binary=True,
        note="VTAB's dSprites location, on sprites that this package draws by the same factors",
        builder_module=_BUILDERS,
        offline=True,
    ),
)

OFFLINE: dict[str, Task] = {task.name: task for task in _TASKS}
