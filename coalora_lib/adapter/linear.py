"""LoRA's linear layer under autocast, in less than half of the kernels that PEFT's needs.

PEFT's forward casts the input for the frozen weight, casts it back for the factors, casts it again
for each product, and scales and adds in kernels of their own. Here the input is cast once, and the
products scale and add.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from coalora_lib.adapter.quantized import QuantizedLinear, autocast_dtype


class LoraFactor(nn.Linear):
    """A LoRA factor for which another one may stand in: L2, PEFT's ``lora_A``, or L1, ``lora_B``.

    It takes PEFT's parameter over, under its name. ``stand_in`` is what an adjuster puts in the
    weight's place, of its shape, and ``shift``, (out_features,), a bias that it adds: v.
    """

    def __init__(self, factor: nn.Linear) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device="meta")
        self.weight = factor.weight
        self.stand_in: Tensor | None = None
        self.shift: Tensor | None = None

    @property
    def current(self) -> Tensor:
        """The weight that it computes with now."""
        return self.weight if self.stand_in is None else self.stand_in

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(inputs, self.current, self.shift)

    def take(self, weight: Tensor, shift: Tensor | None = None) -> None:
        """Compute with this weight and bias from now on; with its own parameter, plainly."""
        self.stand_in = None if weight is self.weight else weight
        self.shift = shift

    def __getstate__(self) -> dict[str, Any]:
        # A stand-in belongs to one forward's graph: a copy of the model begins without.
        return self.__dict__ | {"stand_in": None, "shift": None}


class LoraProduct(torch.autograd.Function):
    """y = x W^T + b + scaling (x A^T + s) B^T, with gradients for x, A, s and B.

    Everything is computed in the dtype ``low`` and gradients are returned in the dtype of what
    they belong to, as autocast does. W, (out, in), and b, (out,) or None, are frozen; x is
    (..., in), A (r, in), s (r,) or None, B (out, r); scaling is alpha / r.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        first: Tensor,
        shift: Tensor | None,
        second: Tensor,
        scaling: float,
        low: torch.dtype,
    ) -> Tensor:
        """(..., out) in ``low``."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(low)
        weight, lowered, second_low = weight.to(low), first.to(low), second.to(low)
        inner = _affine(rows, lowered, shift)
        output = _affine(rows, weight, bias)
        output.addmm_(inner, second_low.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, lowered, inner, second_low)
        ctx.scaling, ctx.shape = scaling, inputs.shape
        ctx.dtypes = inputs.dtype, first.dtype, second.dtype
        ctx.shift_dtype = None if shift is None else shift.dtype
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments, in their order."""
        rows, weight, first, inner, second = ctx.saved_tensors
        of_inputs, of_first, of_second = ctx.dtypes
        gradient = gradient.reshape(-1, weight.shape[0]).to(rows.dtype)
        through = _scaled(gradient, second, ctx.scaling)
        found: list[Tensor | None] = [None] * 8
        if ctx.needs_input_grad[0]:
            below = (gradient @ weight).addmm_(through, first)
            found[0] = below.view(ctx.shape).to(of_inputs)
        if ctx.needs_input_grad[3]:
            found[3] = (through.T @ rows).to(of_first)
        if ctx.needs_input_grad[4]:
            found[4] = through.sum(0, dtype=ctx.shift_dtype)
        if ctx.needs_input_grad[5]:
            found[5] = _scaled(gradient.T, inner, ctx.scaling).to(of_second)
        return tuple(found)


def _affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ weight.T if bias is None else torch.addmm(bias.to(rows.dtype), rows, weight.T)


def _scaled(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """``scaling`` (left @ right) in one kernel; what a beta of 0 adds is not read."""
    return torch.addmm(left.new_empty(1), left, right, beta=0, alpha=scaling)


class LoraLinear(lora.Linear):
    """PEFT's LoRA layer, whose forward is :class:`LoraProduct` where that is the same sum.

    That is under autocast to a 16-bit type, with one plain adapter, not merged, without dropout,
    on a frozen weight. Everything else goes PEFT's way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) to (..., out)."""
        kind = x.device.type
        if args or kwargs or not torch.is_autocast_enabled(kind) or not self._is_plain():
            return super().forward(x, *args, **kwargs)
        low, (name,) = torch.get_autocast_dtype(kind), self.active_adapters
        first, second, base = self.lora_A[name], self.lora_B[name], self.base_layer
        (l2, shift), (l1, lift) = _computed(first), _computed(second)
        bias = base.corrected_bias if isinstance(base, QuantizedLinear) else base.bias
        scaling = self.scaling[name]
        if lift is not None:  # PEFT scales what B gives, its bias too
            bias = lift * scaling if bias is None else torch.add(bias, lift, alpha=scaling)
        return LoraProduct.apply(x, base.weight, bias, l2, shift, l1, scaling, low)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, over a plain linear layer; RuntimeError over a quantized one."""
        if isinstance(self.base_layer, QuantizedLinear):
            raise RuntimeError(
                "a configuration-aware adapter cannot be merged in place; call "
                "CoaLora.merge(configuration), which merges it for one configuration"
            )
        super().merge(*args, **kwargs)

    def _is_plain(self) -> bool:
        active, base = self.active_adapters, self.base_layer
        return (
            len(active) == 1
            and active[0] in self.lora_A
            and not self.fan_in_fan_out
            and not self.lora_variant
            and not self.merged
            and not self.disable_adapters
            and isinstance(self.lora_dropout[active[0]], nn.Identity)
            and not base.weight.requires_grad
        )


def _computed(factor: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a LoRA factor computes with now, ours or PEFT's own."""
    if isinstance(factor, LoraFactor):
        return factor.current, factor.shift
    return factor.weight, factor.bias


@contextmanager
def frozen_copies(layers: Iterable[lora.LoraLayer]) -> Iterator[None]:
    """While it lasts, the frozen parameters behind PEFT's LoRA layers are copies of their own.

    Where passes run under bfloat16 autocast, they are bfloat16 at once and not cast in each pass.
    """
    before = []
    for layer in layers:
        for name, parameter in layer.base_layer.named_parameters():
            copy = parameter.detach().to(autocast_dtype(parameter), copy=True)
            setattr(layer.base_layer, name, nn.Parameter(copy, requires_grad=False))
            before.append((layer.base_layer, name, parameter))
    try:
        yield
    finally:
        for module, name, parameter in before:
            setattr(module, name, parameter)
