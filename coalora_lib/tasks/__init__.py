"""Tasks and models by name: the only place that reads environment variables."""

from coalora_lib.tasks.data import TASKS, TaskSplits, data_checksum, load_task
from coalora_lib.tasks.decoder import Decoder, small_decoder
from coalora_lib.tasks.models import Classifier, checkpoint_checksum, load_classifier

__all__ = [
    "TASKS",
    "Classifier",
    "Decoder",
    "TaskSplits",
    "checkpoint_checksum",
    "data_checksum",
    "load_classifier",
    "load_task",
    "small_decoder",
]
