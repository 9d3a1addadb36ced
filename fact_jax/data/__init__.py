"""The data room: tasks as a table, reading through TFDS, pixels through Pillow, the cache."""

from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.source import DataSettings, Examples, TaskData, open_task
from fact_jax.data.tasks import VTAB, Task, get_task

__all__ = [
    "VTAB",
    "DataSettings",
    "Examples",
    "FewShotTask",
    "Task",
    "TaskData",
    "get_task",
    "open_task",
]
