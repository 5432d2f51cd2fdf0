"""A frozen linear layer whose weight follows a choice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter.cache import WeightCache
from coalora_lib.adapter.weights import PretrainedWeight
from coalora_lib.calibration import output_svd
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


@dataclass(frozen=True, eq=False)
class Corrected:
    """A choice with the terms that were fitted for a whole configuration, see :mod:`.ordered`."""

    choice: Choice
    left: Tensor  #: (rows, k), of the frozen low-rank term
    right: Tensor  #: (k, columns)
    correction: Tensor  #: (out,), added to the bias
    replaces: bool = False  #: the trained LoRA, which is then off
    #: Codes that were chosen for the configuration; None: the nearest ones.
    quantized: QuantizedWeight | None = None


#: What a layer is switched to.
LayerState = Choice | Corrected


@dataclass
class Current:
    """What a layer computes with now. Apart from the module, whose attributes are slow to set."""

    weight: Tensor
    correction: Tensor | None = None
    state: LayerState | None = None


class QuantizedLinear(nn.Module):
    """y = W x + b under one choice of a space: W = Q(W_pre; c), b = bias + (W_pre - Q) E[x].

    It takes the place of a linear layer behind LoRA, or of GPT-2's Conv1D, whose weight is
    transposed, (in, out). Neither the pre-trained weight nor the quantized ones are parameters or
    buffers: nothing that loads, merges or averages parameters can write into them.

    Args:
        linear: its bias is taken over.
        space: of the choices.
        cache: shared by the layers of a model.
        frozen_rank: k > 0 adds a frozen term of that rank to every quantized weight: what is best
            for the weight, SVD_k(W_pre - Q), or for the output where second moments are given.
        mean_input: E[x], (in,), for the correction of the mean output; None corrects nothing.
        second_moment: E[x x^T], (in, in), see :mod:`coalora_lib.calibration`.
        kept: where the pre-trained weight is; by default with the model. Where it is apart, the
            weight under a choice is not held by the cache, only its packed form.
    """

    def __init__(
        self,
        linear: nn.Linear | Conv1D,
        space: ConfigurationSpace,
        cache: WeightCache,
        frozen_rank: int = 0,
        mean_input: Tensor | None = None,
        second_moment: Tensor | None = None,
        kept: PretrainedWeight | None = None,
    ) -> None:
        super().__init__()
        self.transposed = isinstance(linear, Conv1D)
        weight = linear.weight.detach()
        self.kept = PretrainedWeight(weight) if kept is None else kept
        rows, columns = weight.shape
        self.out_features, self.in_features = (
            (columns, rows) if self.transposed else (rows, columns)
        )
        self.bias = linear.bias
        self.space, self.frozen_rank = space, frozen_rank
        self.mean_input = None if mean_input is None else mean_input.to(weight.device)
        self.second_moment = None if second_moment is None else second_moment.to(weight.device)
        self._cache = cache
        # Where reading would copy, what the layer had is there already.
        there = self.kept.held.device == weight.device
        self._current = Current(self.pretrained if there else weight)
        # An output's worth each, small beside the weights, so all are kept.
        self._corrections: dict[Choice, Tensor] = {}

    @property
    def pretrained(self) -> Tensor:
        """The pre-trained weight, read from where it is kept; not to be written to."""
        return self.kept.read()

    @property
    def weight(self) -> Tensor:
        """What the layer computes with now; not to be written to."""
        return self._current.weight

    @property
    def choice(self) -> Choice | None:
        """The current choice; None while the weight is the pre-trained one."""
        state = self._current.state
        return state.choice if isinstance(state, Corrected) else state

    @property
    def correction(self) -> Tensor | None:
        """(out,), the current choice's correction of the bias; None without a mean input."""
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

    def switch(self, state: LayerState | None, weight: Tensor, correction: Tensor | None) -> None:
        """Compute with what :meth:`under` returned for a state from now on."""
        now = self._current
        now.weight, now.correction, now.state = weight, correction, state

    def snapshot(self) -> Current:
        """What the layer computes with now, for :meth:`swap` to put back."""
        return replace(self._current)

    def swap(self, current: Current) -> Current:
        """Compute with this from now on; returns the previous one."""
        before, self._current = self._current, current
        return before

    def under(
        self, state: LayerState | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and correction under a choice; the weight in the pre-trained dtype by default."""
        if state is None:
            return self.pretrained.to(dtype or self.kept.dtype), self.correction_of(None)
        weight = self.restored(state, dtype)
        same = weight.dtype == self.kept.dtype
        return weight, self.correction_of(state, weight if same else None)

    def lacks(self, state: LayerState | None) -> bool:
        """Whether the frozen term of a choice would have to be made first."""
        fixed = state is None or isinstance(state, Corrected) or not self.frozen_rank
        return not fixed and not self._cache.holds("packed", (id(self), state))

    def take(
        self, choice: Choice, packed: PackedWeight, weight: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Hold a weight made elsewhere, as it is stored and as it is computed with in the
        pre-trained dtype; returns what :meth:`under` then does."""
        self._cache.get("packed", (id(self), choice), lambda: packed)
        correction = self.correction_of(choice, weight)
        wanted = weight.to(dtype or weight.dtype)
        if not self.kept.apart:
            self._cache.get("restored", (id(self), choice, wanted.dtype), lambda: wanted)
        return wanted, correction

    def own_memory(self, corrected: bool) -> None:
        """Move weight and correction to memory of their own, which one may then copy to.

        ``corrected`` makes room for a correction where there is none now.
        On a GPU with bfloat16 a float32 weight becomes bfloat16, which autocast would cast it to
        in each pass.
        """
        now = self._current
        now.weight = now.weight.to(autocast_dtype(now.weight), copy=True)
        if now.correction is not None:
            now.correction = now.correction.clone()
        elif corrected or self.mean_input is not None:
            now.correction = self.no_correction()

    def packed(self, state: LayerState) -> PackedWeight:
        """The weight under a choice, as it is stored."""
        if isinstance(state, Corrected):
            left, right = (part.to(self.kept.dtype) for part in (state.left, state.right))
            return replace(self.without_term(state), left=left, right=right)
        if not self.frozen_rank:
            return self.plain(state)

        def make() -> PackedWeight:  # alone; :mod:`.together` does it for many layers
            plain = self.quantize(state)
            lost = self.lost(plain.restore())
            return self.with_term(plain, *self._frozen_term(lost.T if self.transposed else lost))

        return self._cache.get("packed", (id(self), state), make)

    def plain(self, choice: Choice) -> PackedWeight:
        """The weight under a choice without a low-rank term."""
        key = id(self), choice, "plain"
        return self._cache.get("packed", key, lambda: self.quantize(choice))

    def without_term(self, state: Corrected) -> PackedWeight:
        """The quantized weight that was fitted to, or the plain one, which is held."""
        if state.quantized is None:
            return self.plain(state.choice)
        return PackedWeight(state.quantized)

    def with_codes(self, state: Corrected) -> Corrected:
        """What was fitted, with the codes that it was fitted over."""
        if state.quantized is not None or not self.space.reads_weights:
            return state
        return replace(state, quantized=self.plain(state.choice).quantized)

    def moved(self, state: Corrected) -> Corrected:
        """What was fitted, where the weight is read to, in its dtype, or float32 if finer."""
        wanted, quantized = (self.kept.device, self.wide), state.quantized
        # A model that goes from 32 to 16 bits leaves the terms as they are, but not the codes,
        # which are to be restored in its dtype.
        restored_alike = quantized is None or quantized.dtype == self.kept.dtype
        if restored_alike and (state.left.device, state.left.dtype) == wanted:
            return state  # caches go by its identity
        left, right, correction = (
            part.to(*wanted) for part in (state.left, state.right, state.correction)
        )
        if quantized is not None:
            quantized = self.assembled(state.choice, dict(quantized.tensors()))
        return replace(state, left=left, right=right, correction=correction, quantized=quantized)

    def assembled(self, choice: Choice, stored: Mapping[str, Tensor]) -> QuantizedWeight:
        """A quantized weight of this layer from its stored tensors; ValueError if one is wrong."""
        here = {name: tensor.to(self.kept.device) for name, tensor in stored.items()}
        return self.space.assemble(here, choice, self.kept.shape, self.kept.dtype)

    def quantize_for_inputs(self, choice: Choice, factor: Tensor) -> QuantizedWeight | None:
        """The weight with codes for inputs of a second moment, given as its factor; None if the
        space has only the nearest codes."""
        return self.space.quantize_for_inputs(self.pretrained, choice, factor, self.transposed)

    def quantize(self, choice: Choice) -> PackedWeight:
        """:meth:`plain`, made anew."""
        return PackedWeight(self.space.quantize(self.pretrained, choice))

    def with_term(self, plain: PackedWeight, left: Tensor, right: Tensor) -> PackedWeight:
        """A weight with a term, (out, k) and (k, in), in memory of its own and the pre-trained
        dtype: what is held must not keep alive the batch that it is a part of."""
        if self.transposed:
            left, right = right.T, left.T
        dtype = self.kept.dtype
        return replace(plain, left=left.to(dtype, copy=True), right=right.to(dtype, copy=True))

    def restored(self, state: LayerState, dtype: torch.dtype | None = None) -> Tensor:
        """The weight under a choice, to compute with; by default in the pre-trained dtype."""
        dtype = dtype or self.kept.dtype
        if self.kept.apart:
            return self.packed(state).restore(dtype)
        key = id(self), state, dtype
        return self._cache.get("restored", key, lambda: self.packed(state).restore(dtype))

    def correction_of(
        self, state: LayerState | None, weight: Tensor | None = None
    ) -> Tensor | None:
        """The lost mean output, (W_pre - Q) E[x], or the fitted bias.

        (out,); None without a mean input; zeros for no choice. ``weight`` is the one under this
        choice, in the pre-trained dtype, where it is at hand.
        """
        if isinstance(state, Corrected):
            return state.correction
        if self.mean_input is None:
            return None
        if state is None:
            return self.no_correction()
        if state not in self._corrections:
            lost = self.lost(self.packed(state).restore() if weight is None else weight)
            mean = self.mean_input.to(lost)
            self._corrections[state] = mean @ lost if self.transposed else lost @ mean
        return self._corrections[state]

    def no_correction(self) -> Tensor:
        """Zeros, (out,)."""
        return torch.zeros(self.out_features, dtype=self.wide, device=self.kept.device)

    @property
    def wide(self) -> torch.dtype:
        """The pre-trained dtype, or float32 if that is finer: what is decomposed is in it."""
        return torch.promote_types(self.kept.dtype, torch.float32)

    def lost(self, weight: Tensor) -> Tensor:
        """W_pre - Q of a restored weight, in the shape of the two."""
        return self.pretrained.to(self.wide) - weight.to(self.wide)

    def _frozen_term(self, lost: Tensor) -> tuple[Tensor, Tensor]:
        """Of what quantization takes, (out, in): (out, k) and (k, in)."""
        if self.second_moment is None:
            return truncated_svd(lost, self.frozen_rank)
        mean = None if self.mean_input is None else self.mean_input.to(lost)
        return output_svd(lost, self.second_moment.to(lost), self.frozen_rank, mean)[:2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to()`` and its kin do; what was made of the weight in its old form is dropped."""
        super()._apply(fn, recurse)
        now, plain = self._current, self._current.weight is self.kept.held
        if self.kept.follow(fn):
            self._cache.clear()
            self._corrections.clear()
        now.weight = self.pretrained if plain else fn(now.weight)
        now.correction = None if now.correction is None else fn(now.correction)
        self.mean_input = None if self.mean_input is None else fn(self.mean_input)
        if self.second_moment is not None:  # never rounded: 16 bits would change the directions
            self.second_moment = self.second_moment.to(self.kept.device)
        return self


def autocast_dtype(frozen: Tensor) -> torch.dtype:
    """The dtype in which autocast on a GPU computes with a frozen tensor; elsewhere its own."""
    low = (
        frozen.dtype == torch.float32  # autocast leaves float64 alone
        and frozen.device.type == "cuda"
        and torch.cuda.is_bf16_supported()
    )
    return torch.bfloat16 if low else frozen.dtype
