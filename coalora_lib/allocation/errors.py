"""The error table: what quantization under each choice of a space does to each layer."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.spaces import ConfigurationSpace, get_space


def error_table(
    weights: Mapping[str, Tensor],
    space: str | ConfigurationSpace = "nf",
    importance: Mapping[str, Tensor] | None = None,
    pieces: int | None = None,
) -> Tensor:
    """The squared quantization error of every layer under every choice: (layers, choices) float64.

    e_i(c) = sum over the layer of F (w - w^)^2, with F the importance of each weight (see
    :func:`coalora_lib.training.fisher_importance`), or 1. With ``pieces``, the paper's spaces
    estimate a layer's error from this many evenly spaced pieces of 16,384 weights, scaled to the
    whole layer.

    Raises:
        TypeError, ValueError: as :func:`coalora_lib.quantization.quantize`, with the layer's name;
            or an importance is missing, has another shape, or is negative or not finite.
    """
    space = get_space(space)
    table = torch.zeros(len(weights), len(space.choices), dtype=torch.float64)
    parts = _parts(weights, space, importance, pieces)
    on_gpu = any(weight.is_cuda for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    # Operations on a part are too small to spread over threads, so that each thread takes parts.
    workers = 1 if on_gpu else torch.get_num_threads()
    with (
        tqdm(total=total, desc="error table", unit="weights", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for (row, size, _), errors in _in_order(pool, parts, 2 * workers):
            table[row] += errors.cpu()
            bar.update(size)
    return table


#: Some of a layer's errors: their row in the table, weights, and what computes them.
_Part = tuple[int, int, Callable[[], Tensor]]


def _in_order(
    pool: ThreadPoolExecutor, parts: Iterator[_Part], ahead: int
) -> Iterator[tuple[_Part, Tensor]]:
    """Each part with its result; only so many parts are made ahead, since they hold memory."""
    running: deque[tuple[_Part, Future[Tensor]]] = deque(
        (part, pool.submit(part[2])) for part in islice(parts, ahead)
    )
    while running:
        part, result = running.popleft()
        yield part, result.result()
        running.extend((more, pool.submit(more[2])) for more in islice(parts, 1))


def _parts(
    weights: Mapping[str, Tensor],
    space: ConfigurationSpace,
    importance: Mapping[str, Tensor] | None,
    pieces: int | None,
) -> Iterator[_Part]:
    for row, (name, weight) in enumerate(weights.items()):
        try:
            if importance is not None and name not in importance:
                raise ValueError("has no importance")
            factors = None if importance is None else importance[name]
            for size, compute in space.error_parts(weight, factors, pieces):
                yield row, size, compute
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from None
