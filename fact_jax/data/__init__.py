"""The data room: tasks as tables, sources of pictures, one reader, and a catalogue of both."""

from fact_jax.data.cache import Examples
from fact_jax.data.catalog import get_task, open_task
from fact_jax.data.reader import TaskData
from fact_jax.data.settings import DataSettings
from fact_jax.data.tables.vtab import VTAB
from fact_jax.data.tasks import Task

__all__ = ["VTAB", "DataSettings", "Examples", "Task", "TaskData", "get_task", "open_task"]
