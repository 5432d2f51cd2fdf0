"""What makes a LoRA follow the configuration: an adjuster gives each layer its factors."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coalora_lib.adapter.encoding import ConfigurationEncoder, ContinuousMeasures, describe_layers
from coalora_lib.adapter.settings import AdapterSettings
from coalora_lib.spaces import ConfigurationSpace


class Factors(NamedTuple):
    """A layer's LoRA, y = (alpha / r) L1 (L2 x + v)."""

    l1: Tensor  #: (out, r), PEFT's ``lora_B``
    l2: Tensor  #: (r, in), PEFT's ``lora_A``
    shift: Tensor | None = None  #: v, (r,)


class Adjuster(nn.Module):
    """The same factors for every configuration (Shared-LoRA), and what other adjusters build on."""

    #: Whether the factors depend on the configuration.
    follows = False

    def adapted(self, indices: Tensor, factors: Sequence[Factors]) -> list[Factors]:
        """Every layer's factors under (layers, fields) int64 indices, made from LoRA's own."""
        return list(factors)


class FactorBank(Adjuster):
    """Every layer keeps factors for each value of the space's first field; a choice picks them.

    As in LLM-QFA (Yi et al. 2025, "One QuantLLM for ALL", arXiv 2405.20202), where the bits are all
    that a configuration chooses: of the paper's five fields it reads the first. All entries start
    from LoRA's own factors.
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


class Adjustment(NamedTuple):
    """The network's outputs for every layer. L1 v is a bias of its output, in the span of L1."""

    matrix: Tensor  #: U, (..., layers, r, r)
    bias: Tensor | None  #: v, (..., layers, r); None where the network makes none


class HyperNetwork(Adjuster):
    """U_theta(Q): one small network from a layer's encoding to its r x r adjustment.

    It is shared by all layers and run for all of them in one forward. LayerNorm -> Linear -> SiLU
    -> Linear to r * r numbers. The last layer starts at about zero (weights with standard deviation
    1e-3, bias 0), so that training starts from plain LoRA.

    Args:
        encoder: makes Q from a configuration's indices.
        rank, widths: r of the LoRA factors, and in_features of each layer.
        hidden: width of the hidden layer; 128 in the paper's code.
        learned_scale: multiply U (and v) by one trained number, 1 at first, as the paper's code.
        output_bias: make v beside U.
    """

    follows = True

    def __init__(
        self,
        encoder: ConfigurationEncoder,
        rank: int,
        widths: Sequence[int],
        hidden: int = 128,
        learned_scale: bool = False,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.rank = rank
        self.norm = nn.LayerNorm(encoder.features)
        self.hidden = nn.Linear(encoder.features, hidden)
        self.activation = nn.SiLU()
        self.output = nn.Linear(hidden, rank * (rank + int(output_bias)))
        self.scale = nn.Parameter(torch.ones(())) if learned_scale else None
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)
        by_width: dict[int, list[int]] = {}
        for layer, width in enumerate(widths):
            by_width.setdefault(width, []).append(layer)
        self._by_width = list(by_width.values())
        for group, layers in enumerate(self._by_width):  # buffers, to be where the model is
            self.register_buffer(f"_layers{group}", torch.tensor(layers), persistent=False)

    def forward(self, indices: Tensor) -> Adjustment:
        """U, and v if it is made, for (..., layers, fields) int64 indices."""
        hidden = self.activation(self.hidden(self.norm(self.encoder(indices))))
        output = self.output(hidden)
        if self.scale is not None:
            output = output * self.scale
        output = output.unflatten(-1, (-1, self.rank))  # rows of U, then v
        bias = output[..., self.rank, :] if output.shape[-2] > self.rank else None
        return Adjustment(output[..., : self.rank, :], bias)

    def adapted(self, indices: Tensor, factors: Sequence[Factors]) -> list[Factors]:
        """(I + U) L2, and v if it is made, of every layer."""
        adjustment = self(indices)
        first = self.adjusted(adjustment, [layer.l2 for layer in factors])
        shifts = [None] * len(first) if adjustment.bias is None else adjustment.bias.unbind()
        return [
            Factors(layer.l1, l2, shift)
            for layer, l2, shift in zip(factors, first, shifts, strict=True)
        ]

    def adjusted(self, adjustment: Adjustment, l2: Sequence[Tensor]) -> list[Tensor]:
        """(I + U) L2 of every layer, each (r, in).

        Layers of the same width go through one batched product: a handful of kernels, whatever
        the number of layers.
        """
        products: dict[int, Tensor] = {}
        for group, layers in enumerate(self._by_width):
            # Not torch.stack: on a GPU it makes a view of each factor first, one by one.
            stacked = torch.cat([l2[layer] for layer in layers]).unflatten(0, (len(layers), -1))
            matrix = adjustment.matrix.index_select(0, self.get_buffer(f"_layers{group}"))
            made = torch.baddbmm(stacked, matrix, stacked)
            products |= zip(layers, made.unbind(), strict=True)
        return [products[layer] for layer in range(len(l2))]


def new_adjuster(
    settings: AdapterSettings,
    space: ConfigurationSpace,
    weights: Mapping[str, Tensor],
    factors: Sequence[Factors],
    errors: Callable[[], Tensor],
) -> Adjuster:
    """The adjuster that the settings ask for, where LoRA's factors are and of their dtype.

    LoRA's own factors are frozen where it brings others. ``weights`` are the layers' pre-trained
    ones; ``errors`` gives the (layers, choices) error table, which ``error_features`` read.
    """
    if settings.adjuster == "none":
        return Adjuster()
    if settings.adjuster == "bank":
        for own in factors:
            own.l1.requires_grad_(False)
            own.l2.requires_grad_(False)
        return FactorBank(space.cardinalities[0], factors)
    measures = None
    if settings.error_features:
        measures = ContinuousMeasures(errors(), weights, space)
    network = HyperNetwork(
        ConfigurationEncoder(describe_layers(list(weights)), space, settings.width, measures),
        settings.rank,
        [each.l2.shape[1] for each in factors],
        settings.hidden,
        settings.learned_scale,
        settings.output_bias,
    )
    return network.to(factors[0].l2.device, factors[0].l2.dtype)
