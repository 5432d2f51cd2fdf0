"""Tasks and models by name, and own texts: the only place that reads environment variables."""

from coalora_lib.tasks.data import (
    TASKS,
    TEXTS,
    TaskSplits,
    data_checksum,
    kinds_of,
    load_task,
    similarity_pairs,
)
from coalora_lib.tasks.decoder import small_decoder
from coalora_lib.tasks.models import (
    Pretrained,
    checkpoint_checksum,
    load_classifier,
    load_pretrained,
)
from coalora_lib.tasks.table import from_table

__all__ = [
    "TASKS",
    "TEXTS",
    "Pretrained",
    "TaskSplits",
    "checkpoint_checksum",
    "data_checksum",
    "from_table",
    "kinds_of",
    "load_classifier",
    "load_pretrained",
    "load_task",
    "similarity_pairs",
    "small_decoder",
]
