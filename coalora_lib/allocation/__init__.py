"""Bit allocation: what each choice costs each layer, and which to take under a budget."""

from coalora_lib.allocation.errors import error_table
from coalora_lib.allocation.program import Allocation, allocate, undominated

__all__ = ["Allocation", "allocate", "error_table", "undominated"]
