"""What makes a LoRA follow the configuration: an adjuster gives each layer its factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Factors(NamedTuple):
    """A layer's LoRA, y = (alpha / r) L1 (L2 x + v).

    Attributes:
        l1: (out, r), PEFT's ``lora_B``.
        l2: (r, in), PEFT's ``lora_A``.
        shift: v, (r,), or None.
    """

    l1: Tensor
    l2: Tensor
    shift: Tensor | None = None


class Adjuster(nn.Module):
    """The same factors for every configuration (Shared-LoRA), and what other adjusters build on."""

    #: Whether the factors depend on the configuration.
    follows = False

    def adapted(self, indices: Tensor, factors: Sequence[Factors]) -> list[Factors]:
        """The factors of every layer under a configuration.

        Args:
            indices: (layers, fields) int64.
            factors: LoRA's own, one for each layer.
        """
        return list(factors)


class FactorBank(Adjuster):
    """Every layer keeps factors for each value of the space's first field; a choice picks them.

    As in LLM-QFA (Yi et al. 2025, "One QuantLLM for ALL", arXiv 2405.20202), where the bits are all
    that a configuration chooses: of the paper's five fields it reads the first. It stores as many
    times LoRA's factors as there are bit widths.

    Args:
        values: number of values of the first field.
        factors: LoRA's own, which all entries start from.
    """

    follows = True

    def __init__(self, values: int, factors: Sequence[Factors]) -> None:
        super().__init__()
        self.l1, self.l2 = (
            nn.ParameterList(
                nn.Parameter(getattr(layer, name).detach().repeat(values, 1, 1))
                for layer in factors
            )
            for name in ("l1", "l2")
        )

    def adapted(self, indices: Tensor, factors: Sequence[Factors]) -> list[Factors]:
        """The entry for the first field of every layer."""
        picked = indices[:, :1].unbind()
        return [
            Factors(l1.index_select(0, row)[0], l2.index_select(0, row)[0])
            for l1, l2, row in zip(self.l1, self.l2, picked, strict=True)
        ]
