"""The hypernetwork U_theta(Q): from a layer's encoding to its r x r adjustment."""

from __future__ import annotations

from torch import Tensor, nn

from coalora_lib.adapter.encoding import ConfigurationEncoder


class HyperNetwork(nn.Module):
    """One small network, shared by all layers and run for all of them in one forward.

    LayerNorm -> Linear -> SiLU -> Linear to r * r numbers. The last layer starts at about zero
    (weights with standard deviation 1e-3, bias 0), so that training starts from plain LoRA.

    Args:
        encoder: makes Q from a configuration's indices.
        rank: r of the LoRA factors.
        hidden: width of the hidden layer; 128 in the paper's code.
    """

    def __init__(self, encoder: ConfigurationEncoder, rank: int, hidden: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.rank = rank
        self.norm = nn.LayerNorm(encoder.features)
        self.hidden = nn.Linear(encoder.features, hidden)
        self.activation = nn.SiLU()
        self.output = nn.Linear(hidden, rank * rank)
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def forward(self, indices: Tensor) -> Tensor:
        """U of every layer: (layers, 5) int64 to (layers, r, r)."""
        hidden = self.activation(self.hidden(self.norm(self.encoder(indices))))
        return self.output(hidden).unflatten(-1, (self.rank, self.rank))
