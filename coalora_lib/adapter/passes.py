"""Watching a pass of a model: hooks on its layers, and what their outputs are added to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Both operators and functions arrive as these.
ADDITIONS = (torch.Tensor.add, torch.Tensor.add_, torch.add)


@contextmanager
def hooks(base: nn.Module, of: Mapping[str, Callable], before: bool) -> Iterator[None]:
    """While it lasts, these are called before, or after, the layers of their names."""
    handles = []
    for name, hook in of.items():
        layer = base.get_submodule(name)
        register = layer.register_forward_pre_hook if before else layer.register_forward_hook
        handles.append(register(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Additions(TorchFunctionMode):
    """Records the tensor to which a layer's output is added, if this is its first use."""

    def __init__(self, found: Callable[[str, Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self.found = found  # called with layer, output and residual; may give another output
        self.name, self.output = "", torch.empty(0)

    def wait_for(self, name: str, output: Tensor) -> None:
        """The output of this layer is next."""
        self.name, self.output = name, output

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = self.output
        sides = [side for side, value in enumerate(args[:2]) if value is output]
        if sides and func in ADDITIONS and len(args) > 1:
            side, other = sides[0], args[1 - sides[0]]
            if isinstance(other, Tensor) and other.shape == output.shape:
                new = self.found(self.name, output, other)
                args = args if new is None else (*args[:side], new, *args[side + 1 :])
        result = func(*args, **(kwargs or {}))
        if sides and result is not output:  # as it is, out of a dropout that does nothing
            self.output = torch.empty(0)
        return result
