"""From texts of one's own to an adapter for any device: train, evaluate, adapt, report."""

from coalora_lib.recipes.device import Device, read_device
from coalora_lib.recipes.fitting import adapt_to_texts
from coalora_lib.recipes.folder import RunFolder, Settings
from coalora_lib.recipes.training import train_run
from coalora_lib.recipes.using import adapt, evaluate_run, report

__all__ = [
    "Device",
    "RunFolder",
    "Settings",
    "adapt",
    "adapt_to_texts",
    "evaluate_run",
    "read_device",
    "report",
    "train_run",
]
