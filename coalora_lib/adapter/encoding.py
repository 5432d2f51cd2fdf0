"""The encoding Q_i = [z_i, m_i, b_i] of a layer and its configuration (paper, section 4.1).

z_i embeds the five fields of c_i, m_i the layer's module type, b_i the index of its block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coalora_lib.configuration import FIELD_SIZES


@dataclass(frozen=True)
class LayerDescriptions:
    """Where each layer sits in its model.

    Attributes:
        types: the distinct module types, such as "attention.self.query".
        type_index: (layers,) int64, each layer's position in ``types``.
        block_index: (layers,) int64, each layer's block, counted from 0.
    """

    types: tuple[str, ...]
    type_index: Tensor
    block_index: Tensor


def describe_layers(names: Sequence[str]) -> LayerDescriptions:
    """Read module type and block index off module paths.

    The first integer in a path is the block, what follows it the module type:
    "bert.encoder.layer.3.attention.self.query" is "attention.self.query" in block 3, and
    "model.layers.7.mlp.up_proj" is "mlp.up_proj" in block 7.

    Raises:
        ValueError: a path has no integer part, or nothing after it.
    """
    kinds, blocks = [], []
    for name in names:
        match = re.fullmatch(r"(?:.*?\.)??(\d+)\.(.+)", name)
        if match is None:
            raise ValueError(f"layer {name!r} is in no numbered block, as in 'layer.3.query'")
        blocks.append(int(match[1]))
        kinds.append(match[2])
    types = tuple(dict.fromkeys(kinds))
    index = torch.tensor([types.index(kind) for kind in kinds])
    return LayerDescriptions(types, index, torch.tensor(blocks))


class ConfigurationEncoder(nn.Module):
    """Embeds every layer of a configuration: (layers, 5) integers to (layers, 7 * width).

    Args:
        layers: the layers of the model, from :func:`describe_layers`.
        width: size of each of the seven embeddings; 8 in the paper's code.
    """

    type_index: Tensor
    block_index: Tensor

    def __init__(self, layers: LayerDescriptions, width: int = 8) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(size, width) for size in FIELD_SIZES)
        self.types = nn.Embedding(len(layers.types), width)
        self.blocks = nn.Embedding(int(layers.block_index.max()) + 1, width)
        self.register_buffer("type_index", layers.type_index, persistent=False)
        self.register_buffer("block_index", layers.block_index, persistent=False)
        self.features = (len(FIELD_SIZES) + 2) * width

    def forward(self, indices: Tensor) -> Tensor:
        """Q for all layers of one configuration.

        Args:
            indices: (layers, 5) int64, from :func:`coalora_lib.configuration.to_indices`.
        """
        z = [embed(column) for embed, column in zip(self.fields, indices.T, strict=True)]
        return torch.cat([*z, self.types(self.type_index), self.blocks(self.block_index)], dim=-1)
