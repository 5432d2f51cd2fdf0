"""What the search is given: tensors, NumPy arrays, or lists of numbers."""

import reprlib
from typing import Any

import torch
from torch import Tensor


def as_numbers(name: str, values: Any) -> Tensor:
    """The values as a tensor of real numbers; TypeError, with the given value, if they are not."""
    try:
        numbers = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(
            f"{name} must be real numbers in a tensor, an array or lists, got "
            f"{reprlib.repr(values)} of {type(values).__name__}"
        )
    return numbers
