"""MetaTT-4D of rank 16 with a core for the task, 30,976 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config metatt_tasks
    python -m experiments.bank train --config configs/metatt_tasks.py --config.tasks=dtd,svhn \\
        --workdir runs/metatt --dictionary metatt.dictionary

Alone, a task trains all numbers. Tasks that are trained together by `bank train` share 30,720 of
them, and each stores 256 of its own. No published numbers are stored; nothing to choose.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("metatt_tasks", rank=16)
