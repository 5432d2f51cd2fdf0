"""Bit allocation: what each choice costs each layer, and which to take under a budget."""

from coalora_lib.allocation.errors import error_table
from coalora_lib.allocation.program import Allocation, Device, allocate, undominated

__all__ = ["Allocation", "Device", "allocate", "error_table", "undominated"]
