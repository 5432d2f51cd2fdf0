"""The targets of every layer on some texts: the outputs of the unquantized model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from coalora_lib.adapter.model import CoaLora
from coalora_lib.adapter.passes import Additions, hooks

#: In a part.
TEXTS = 64


class Aims:
    """What every layer is to reach: its output, and the residual that it is added to, by name.

    Both are (tokens, features) without padding, in the model's dtype.
    """

    @torch.no_grad()
    def __init__(self, model: CoaLora, inputs: Mapping[str, Tensor], residuals: bool) -> None:
        self.real = real_tokens(inputs).flatten()
        seen = [_Seen(model, part, residuals) for part in parts(inputs)]
        self.outputs, self.residuals = (
            {name: torch.cat([values[name] for values in each]) for name in each[0]}
            for each in ([one.outputs for one in seen], [one.residuals for one in seen])
        )

    def tokens(self, name: str, values: Tensor) -> Tensor:
        """(tokens, features) of all texts without padding, float32 at least."""
        return wide(_tokens_of(name, values, self.real))

    def of(self, name: str) -> Tensor:
        """(tokens, out), float32 at least: the output of a layer, on its residual if it has one."""
        output, residual = wide(self.outputs[name]), self.residuals.get(name)
        return output if residual is None else output + residual

    def padded(self, real: Tensor, shape: Sequence[int]) -> Tensor:
        """(tokens, features) without padding as (texts, length, features), zero at padding."""
        whole = real.new_zeros(len(self.real), real.shape[-1])
        whole[self.real] = real
        return whole.reshape(*shape[:-1], -1)


class _Seen:
    """What a model has in one pass, as :class:`Aims`."""

    def __init__(self, model: CoaLora, inputs: Mapping[str, Tensor], residuals: bool) -> None:
        self.real = real_tokens(inputs).flatten()
        self.outputs: dict[str, Tensor] = {}
        self.residuals: dict[str, Tensor] = {}
        self.additions = Additions(self._keep_residual) if residuals else None
        base = model.get_base_model()
        keepers = {name: self._keep(name) for name in model.layer_names}
        with hooks(base, keepers, before=False), self.additions or nullcontext():
            base(**inputs)
        for name in model.layer_names:
            if name not in self.outputs:
                raise ValueError(f"{name} was not called when the model passed over the texts")

    def _keep(self, name: str) -> Callable:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            if name in self.outputs:
                raise ValueError(f"{name} is called twice in a pass, and cannot be fitted in order")
            self.outputs[name] = _tokens_of(name, output, self.real)
            if self.additions is not None:
                self.additions.wait_for(name, output)

        return hook

    def _keep_residual(self, name: str, _: Tensor, residual: Tensor) -> None:
        self.residuals[name] = _tokens_of(name, residual, self.real)


def _tokens_of(name: str, values: Tensor, real: Tensor) -> Tensor:
    flat = values.reshape(-1, values.shape[-1])
    if len(flat) != len(real):
        raise ValueError(
            f"{name} is given {len(flat)} tokens, and the texts have {len(real)}: layers of an "
            "encoder with a decoder, or of experts, cannot be fitted in order"
        )
    return flat[real]


def parts(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Some texts at a time, without padding that none of them needs."""
    every = real_tokens(inputs)
    for start in range(0, len(every), TEXTS):
        real = every[start : start + TEXTS]
        length = real.shape[1] - int(real.any(0).flip(0).int().argmax())
        yield {
            name: rows[:, :length] if rows.shape[:2] == real.shape else rows
            for name, value in inputs.items()
            for rows in (value[start : start + TEXTS],)
        }


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """(texts, length) bool, false at padding; all true without a mask.

    Raises:
        ValueError: the batch has no tokens and no mask, such as a batch of images.
    """
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    if "input_ids" not in batch:
        raise ValueError(
            f"a fit in order needs input_ids or an attention_mask; got {', '.join(batch) or 'none'}"
        )
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def wide(values: Tensor) -> Tensor:
    """Float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
