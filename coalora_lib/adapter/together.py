"""The frozen terms of many layers, made together.

A layer's term is a dozen products of small matrices, and a GPU is done with each before it is told
of the next. So layers of one shape are stacked, and :mod:`coalora_lib.calibration` and
:mod:`coalora_lib.decomposition` are called once for all of them. Layers that share a second moment
stay beside each other, and it is stacked once. What is stacked at a time is bounded: memory does
not grow with the number of layers.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from coalora_lib.adapter.quantized import PackedWeight, QuantizedLinear
from coalora_lib.calibration import output_svd
from coalora_lib.decomposition import truncated_svd
from coalora_lib.spaces import Choice

#: Bytes that are stacked at a time, at most, where one moment's layers take no more.
PIECE = 2**29

#: A layer and the choice whose term is sought.
Wanted = tuple[QuantizedLinear, Choice]


def packed_together(
    wanted: Iterable[Wanted],
) -> Iterator[tuple[QuantizedLinear, Choice, PackedWeight, Tensor]]:
    """Each layer's weight under its choice, with its frozen term, in no certain order.

    As it is stored, and restored in the pre-trained dtype; neither is held by the layer's cache.
    The layers have a frozen rank.
    """
    for piece in _pieces(wanted):
        yield from _packed(piece)


def _pieces(wanted: Iterable[Wanted]) -> Iterator[Sequence[Sequence[Wanted]]]:
    """Rows of layers that share a second moment; those of a piece are of one shape and length."""
    sharing: dict[tuple, list[Wanted]] = defaultdict(list)
    for layer, choice in wanted:
        second = layer.second_moment
        key = id(layer if second is None else second), *_kind(layer)
        sharing[key].append((layer, choice))
    alike: dict[tuple, list[list[Wanted]]] = defaultdict(list)
    for (_, *kind), row in sharing.items():
        alike[*kind, len(row)].append(row)
    for rows in alike.values():
        count = max(1, PIECE // _stacked_bytes(rows[0]))
        for first in range(0, len(rows), count):
            yield rows[first : first + count]


def _kind(layer: QuantizedLinear) -> tuple:
    """What layers that are stacked have in common."""
    given = layer.second_moment is None, layer.mean_input is None
    return layer.out_features, layer.in_features, layer.frozen_rank, layer.kept.device, *given


def _stacked_bytes(row: Sequence[Wanted]) -> int:
    """What a row takes: what is lost and the moment, both wide, and the restored weights."""
    layer = row[0][0]
    wide = layer.wide.itemsize
    moment = 0 if layer.second_moment is None else wide * layer.in_features**2
    return len(row) * (wide * layer.kept.shape.numel() + layer.kept.nbytes) + moment


def _packed(
    rows: Sequence[Sequence[Wanted]],
) -> Iterator[tuple[QuantizedLinear, Choice, PackedWeight, Tensor]]:
    first = rows[0][0][0]
    size = len(rows), len(rows[0]), first.out_features, first.in_features
    lost = torch.empty(size, dtype=first.wide, device=first.kept.device)
    quantized = []
    for row, places in zip(rows, lost, strict=True):
        for (layer, choice), place in zip(row, places, strict=True):
            plain = layer.quantize(choice)
            weight = plain.restore()
            (place.T if layer.transposed else place).copy_(layer.pretrained).sub_(weight)
            quantized.append((layer, choice, plain, weight))
    left, right = (part.flatten(end_dim=1) for part in _terms(rows, lost))
    del lost
    quantized.reverse()
    for one, other in zip(left, right, strict=True):
        layer, choice, plain, weight = quantized.pop()  # the last reference to the weight
        packed = layer.with_term(plain, one, other)
        assert packed.left is not None
        assert packed.right is not None
        yield layer, choice, packed, weight.addmm_(packed.left, packed.right)


def _terms(rows: Sequence[Sequence[Wanted]], lost: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, layers, out, k) and (rows, layers, k, in) for (rows, layers, out, in)."""
    first = rows[0][0][0]
    if first.second_moment is None:
        return truncated_svd(lost, first.frozen_rank)
    seconds = [row[0][0].second_moment for row in rows]
    second = torch.stack([each.to(lost) for each in seconds if each is not None])[:, None]
    means = [layer.mean_input for row in rows for layer, _ in row]
    given = [each.to(lost) for each in means if each is not None]  # all of them, or none
    mean = torch.stack(given).view(*lost.shape[:2], -1) if given else None
    return output_svd(lost, second, first.frozen_rank, mean)[:2]
