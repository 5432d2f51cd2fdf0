"""Tasks and models by name, and own texts: the only place that reads environment variables."""

from coalora_lib.tasks.data import TASKS, TaskSplits, data_checksum, load_task
from coalora_lib.tasks.decoder import small_decoder
from coalora_lib.tasks.models import (
    Pretrained,
    checkpoint_checksum,
    load_classifier,
    load_language_model,
)
from coalora_lib.tasks.table import from_table

__all__ = [
    "TASKS",
    "Pretrained",
    "TaskSplits",
    "checkpoint_checksum",
    "data_checksum",
    "from_table",
    "load_classifier",
    "load_language_model",
    "load_task",
    "small_decoder",
]
