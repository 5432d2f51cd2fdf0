"""A frozen linear layer whose weight follows a choice, and the memory of weights made before."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coalora_lib.decomposition import truncated_svd
from coalora_lib.spaces import Choice, ConfigurationSpace, QuantizedWeight


@dataclass(frozen=True)
class PackedWeight:
    """A layer under one choice, as it is stored; for GPT-2's Conv1D that is (in, out)."""

    quantized: QuantizedWeight  #: Q
    left: Tensor | None = None  #: (rows, k), of a frozen low-rank term
    right: Tensor | None = None  #: (k, columns)

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """Q, plus the low-rank term; rounded once, to the pre-trained dtype by default."""
        if self.left is None or self.right is None:
            return self.quantized.dequantize(dtype)
        weight = self.quantized.dequantize().addmm_(self.left, self.right)
        return weight if dtype is None else weight.to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        low_rank = (part for part in (self.left, self.right) if part is not None)
        return self.quantized.nbytes + sum(part.nbytes for part in low_rank)


@dataclass
class Current:
    """What a layer computes with now. Apart from the module, whose attributes are slow to set."""

    weight: Tensor
    correction: Tensor | None = None
    choice: Choice | None = None


class WeightCache:
    """What layers made for choices they had lately: restored weights, and packed ones behind them.

    Switching a layer to a choice seen before is a look-up while its restored weight is held, and a
    de-quantization while only its packed form is. When more bytes than the limit are held, the
    restored weights used longest ago go first, then the packed ones; a limit of 0 holds nothing. A
    copy of a cache begins empty, since its keys are the identities of layers.
    """

    #: In the order in which they are given up.
    KINDS = ("restored", "packed")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clear()

    def get(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is held of a kind under a key, or else what ``make`` returns, which is then held.

        It has ``nbytes``, and is handed out whatever its size.
        """
        entries = self._entries[kind]
        if key in entries:
            entries.move_to_end(key)
            return entries[key]
        made = make()
        entries[key] = made
        self.held += made.nbytes
        for each in self._entries.values():
            while self.held > self.limit and each:
                _, dropped = each.popitem(last=False)
                self.held -= dropped.nbytes
        return made

    def clear(self) -> None:
        """Let go of everything."""
        self.held = 0
        self._entries: dict[str, OrderedDict[Hashable, Any]] = {
            kind: OrderedDict() for kind in self.KINDS
        }

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:  # for copies and pickles
        return type(self), (self.limit,)


class QuantizedLinear(nn.Module):
    """y = W x + b under one choice of a space: W = Q(W_pre; c), b = bias + (W_pre - Q) E[x].

    It takes the place of a linear layer behind LoRA, or of GPT-2's Conv1D, whose weight is
    transposed, (in, out). Neither the pre-trained weight nor the quantized ones are parameters or
    buffers: nothing that loads, merges or averages parameters can write into them.

    Args:
        linear: its bias is taken over.
        space: of the choices.
        cache: shared by the layers of a model.
        residual_rank: k > 0 adds SVD_k(W_pre - Q), frozen, to every quantized weight.
        mean_input: E[x], (in,), for the correction of the mean output; None corrects nothing.
    """

    def __init__(
        self,
        linear: nn.Linear | Conv1D,
        space: ConfigurationSpace,
        cache: WeightCache,
        residual_rank: int = 0,
        mean_input: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.transposed = isinstance(linear, Conv1D)
        self.pretrained = linear.weight.detach()
        rows, columns = self.pretrained.shape
        self.out_features, self.in_features = (
            (columns, rows) if self.transposed else (rows, columns)
        )
        self.bias = linear.bias
        self.space, self.residual_rank = space, residual_rank
        self.mean_input = None if mean_input is None else mean_input.to(self.pretrained.device)
        self._cache = cache
        self._current = Current(self.pretrained)
        # An output's worth each, small beside the weights, so all are kept.
        self._corrections: dict[Choice, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """What the layer computes with now; not to be written to."""
        return self._current.weight

    @property
    def choice(self) -> Choice | None:
        """The current choice; None while the weight is the pre-trained one."""
        return self._current.choice

    @property
    def correction(self) -> Tensor | None:
        """(out,), what the current choice adds to the bias; None without a mean input."""
        return self._current.correction

    @property
    def corrected_bias(self) -> Tensor | None:
        """The bias, and the correction of the mean output where there is one."""
        correction = self._current.correction
        if correction is None:
            return self.bias
        return correction if self.bias is None else self.bias + correction

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight, bias = self._current.weight, self.corrected_bias
        return F.linear(
            inputs,
            weight.T if self.transposed else weight,
            None if bias is None else bias.to(weight.dtype),
        )

    def switch(self, choice: Choice | None) -> None:
        """Compute with the weight under a choice from now on; None: with the pre-trained one."""
        now = self._current
        now.weight, now.correction = self.under(choice)
        now.choice = choice

    def snapshot(self) -> Current:
        """What the layer computes with now, for :meth:`swap` to put back."""
        return replace(self._current)

    def swap(self, current: Current) -> Current:
        """Compute with this from now on; returns what the layer computed with."""
        before, self._current = self._current, current
        return before

    def under(
        self, choice: Choice | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and correction under a choice; the weight in the pre-trained dtype by default."""
        if choice is None:
            return self.pretrained.to(dtype or self.pretrained.dtype), self.correction_of(None)
        return self.restored(choice, dtype), self.correction_of(choice)

    def own_memory(self) -> None:
        """Move weight and correction to memory of their own, which one may then copy to.

        On a GPU with bfloat16 a float32 weight becomes bfloat16, which autocast would cast it to
        in each pass.
        """
        now = self._current
        now.weight = now.weight.to(autocast_dtype(now.weight), copy=True)
        before = now.correction
        now.correction = self.correction_of(None) if before is None else before.clone()

    def packed(self, choice: Choice) -> PackedWeight:
        """The weight under a choice, as it is stored."""
        return self._cache.get("packed", (id(self), choice), lambda: self._pack(choice))

    def restored(self, choice: Choice, dtype: torch.dtype | None = None) -> Tensor:
        """The weight under a choice, to compute with; by default in the pre-trained dtype."""
        dtype = dtype or self.pretrained.dtype
        key = id(self), choice, dtype
        return self._cache.get("restored", key, lambda: self.packed(choice).restore(dtype))

    def correction_of(self, choice: Choice | None) -> Tensor | None:
        """What quantization takes from the mean output, (W_pre - Q) E[x]: (out,).

        None without a mean input; zeros for no choice.
        """
        if self.mean_input is None:
            return None
        if choice is None:
            return self.mean_input.new_zeros(self.out_features)
        if choice not in self._corrections:
            wide = torch.promote_types(self.pretrained.dtype, torch.float32)
            lost = self.pretrained.to(wide) - self.packed(choice).restore().to(wide)
            mean = self.mean_input.to(lost)
            self._corrections[choice] = mean @ lost if self.transposed else lost @ mean
        return self._corrections[choice]

    def _pack(self, choice: Choice) -> PackedWeight:
        quantized = self.space.quantize(self.pretrained, choice)
        if not self.residual_rank:
            return PackedWeight(quantized)
        rest = self.pretrained.float() - quantized.dequantize().float()
        left, right = truncated_svd(rest, self.residual_rank)
        dtype = self.pretrained.dtype
        return PackedWeight(quantized, left.to(dtype), right.to(dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to()`` and its kin do; what was made of the weight in its old form is dropped."""
        super()._apply(fn, recurse)
        converted = fn(self.pretrained)
        if converted is not self.pretrained:
            self._cache.clear()
            self._corrections.clear()
        now = self._current
        now.weight = converted if now.weight is self.pretrained else fn(now.weight)
        now.correction = None if now.correction is None else fn(now.correction)
        self.pretrained = converted
        self.mean_input = None if self.mean_input is None else fn(self.mean_input)
        return self


def autocast_dtype(frozen: Tensor) -> torch.dtype:
    """The dtype in which autocast on a GPU computes with a frozen tensor; elsewhere its own."""
    low = (
        frozen.dtype == torch.float32  # autocast leaves float64 alone
        and frozen.device.type == "cuda"
        and torch.cuda.is_bf16_supported()
    )
    return torch.bfloat16 if low else frozen.dtype
