"""The hypernetwork U_theta(Q): from a layer's encoding to its r x r adjustment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from coalora_lib.adapter.encoding import ConfigurationEncoder


class Adjustment(NamedTuple):
    """What the network says of every layer of a configuration.

    Attributes:
        matrix: U, (..., layers, r, r).
        bias: v, (..., layers, r), or None where the network makes none. It is added to
            (I + U) L2 x, so that L1 v is a bias of the layer's output in the span of L1.
    """

    matrix: Tensor
    bias: Tensor | None


class HyperNetwork(nn.Module):
    """One small network, shared by all layers and run for all of them in one forward.

    LayerNorm -> Linear -> SiLU -> Linear to r * r numbers. The last layer starts at about zero
    (weights with standard deviation 1e-3, bias 0), so that training starts from plain LoRA.

    Args:
        encoder: makes Q from a configuration's indices.
        rank: r of the LoRA factors.
        hidden: width of the hidden layer; 128 in the paper's code.
        learned_scale: multiply U (and v) by one trained number, 1 at first, as the paper's code.
        output_bias: make v beside U.
    """

    def __init__(
        self,
        encoder: ConfigurationEncoder,
        rank: int,
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

    def forward(self, indices: Tensor) -> Adjustment:
        """U, and v if it is made, for (..., layers, 5) int64 indices."""
        hidden = self.activation(self.hidden(self.norm(self.encoder(indices))))
        output = self.output(hidden)
        if self.scale is not None:
            output = output * self.scale
        output = output.unflatten(-1, (-1, self.rank))  # rows of U, then v
        bias = output[..., self.rank, :] if output.shape[-2] > self.rank else None
        return Adjustment(output[..., : self.rank, :], bias)
