"""What a layer's quantization error does to the model, measured on the model.

The sum of squared weight errors, which :func:`.allocate` minimises, takes an error in one layer for
as bad as the same error in another. It is not: here each layer is quantized alone, at a few
choices, and what the model's loss rises by is put against its error.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from coalora_lib.spaces import Choice, Configuration, ConfigurationSpace, Shape, get_space

#: A layer is quantized alone at the least-error choices within its fewest bits and so many more:
#: of NormalFloat 2, 3 and 4 bits with fine scales.
PROBES = (0.3, 1.3, 2.3)
#: The least that a layer counts, as a part of the median layer: where all probes show no harm, that
#: is noise in the loss, and the layer is not free.
LEAST = 0.01


def layer_sensitivities(
    errors: Tensor,
    shapes: Iterable[Shape],
    losses: Callable[[Iterable[Configuration]], Iterable[float]],
    space: str | ConfigurationSpace = "nf",
) -> Tensor:
    """How much the loss rises for each unit of squared error in each layer: (layers,) float64.

    s_i is the least-squares slope, through zero, of the loss on e_i(c) over the probes c. All other
    layers have their least error meanwhile. ``errors * s[:, None]`` is the table to allocate by.

    Args:
        errors: (layers, choices), from :func:`.error_table`.
        shapes: of each layer's weight.
        losses: of some configurations, in their order; a distance to the unquantized model will do.
            It is asked once, for one configuration and ``len(PROBES)`` for each layer.
        space: of the choices.

    Raises:
        ValueError: the numbers of layers differ, or no loss rises.
    """
    space, shapes = get_space(space), list(shapes)
    if len(shapes) != len(errors):
        raise ValueError(f"{len(errors)} rows of errors for {len(shapes)} layers")
    rows = [_probes(row, shape, space) for row, shape in zip(errors, shapes, strict=True)]
    finest = [space.choices[found[-1]] for found in rows]

    def asked() -> Iterator[list[Choice]]:
        yield finest
        for layer, found in enumerate(rows):
            for probe in found[:-1]:
                yield [*finest[:layer], space.choices[probe], *finest[layer + 1 :]]

    found = torch.tensor(list(losses(asked())), dtype=torch.float64)
    rises = (found[1:] - found[0]).clamp(min=0).view(len(rows), -1)
    probed = torch.stack([errors[i, row[:-1]] for i, row in enumerate(rows)]).double()
    slopes = (rises * probed).sum(1) / probed.square().sum(1).clamp(min=torch.finfo().tiny)
    if not (slopes > 0).any():
        raise ValueError(
            "quantizing one layer alone raises the loss for no layer, so "
            "sensitivities cannot guide an allocation"
        )
    return slopes.clamp(min=LEAST * slopes[slopes > 0].median().item())


def _probes(errors: Tensor, shape: Shape, space: ConfigurationSpace) -> list[int]:
    """Rows of a layer's probes and, last, of its least error."""
    bits = space.allowed_bits(shape)
    limits = [*(bits.min().item() + more for more in PROBES), torch.finfo().max]
    return [int(errors.masked_fill(bits > limit, torch.inf).argmin()) for limit in limits]
