"""Bit allocation: the error of each choice in each layer, and the best choices within a budget."""

from coalora_lib.allocation.errors import error_table
from coalora_lib.allocation.program import Allocation, Constraints, allocate, spread
from coalora_lib.allocation.sensitivity import layer_sensitivities
from coalora_lib.allocation.solver import Limit, undominated

__all__ = [
    "Allocation",
    "Constraints",
    "Limit",
    "allocate",
    "error_table",
    "layer_sensitivities",
    "spread",
    "undominated",
]
