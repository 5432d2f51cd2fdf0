"""The error table: what quantization under each choice of a space does to each layer."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from coalora_lib.spaces import ConfigurationSpace, get_space

#: A sample holds one in so many of a model's weights, but so many weights at least and at most.
ONE_IN, FEWEST, MOST = 12, 800_000, 16_000_000


def error_table(
    weights: Mapping[str, Tensor],
    space: str | ConfigurationSpace = "nf",
    importance: Mapping[str, Tensor] | None = None,
    pieces: int | None = None,
    *,
    sample: bool = False,
) -> Tensor:
    """The squared quantization error of every layer under every choice: (layers, choices) float64.

    e_i(c) = sum over the layer of F (w - w^)^2, with F the importance of each weight (see
    :func:`coalora_lib.training.fisher_importance`), or 1. With ``pieces``, the paper's spaces
    estimate a layer's error from this many evenly spaced pieces of 16,384 weights, scaled to the
    whole layer.

    With ``sample``, they estimate it from all scales and the codes of a twelfth of the weights,
    drawn in blocks of 64 (:mod:`coalora_lib.quantization.sampling`), the same at every call: of
    800,000 weights in all and 192 blocks of a layer at least, of 16 million at most; of all of a
    layer where that is half of it or more. Entries that no other choice beats then have a standard
    error of 2.7 to 5.3 %, others may be farther off. What is allocated from the estimate had at
    most 0.6 % more error than the best, on 11 and 55 million weights with outliers or without.

    Raises:
        TypeError, ValueError: as :func:`coalora_lib.quantization.quantize`, with the layer's name;
            or an importance is missing, has another shape, or is negative or not finite; or pieces
            and a sample are both asked for.
    """
    space = get_space(space)
    table = torch.zeros(len(weights), len(space.choices), dtype=torch.float64)
    on_gpu = any(weight.is_cuda for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    share = min(max(total / ONE_IN, FEWEST), MOST) / max(total, 1) if sample else None
    parts = _parts(weights, space, importance, pieces, share)
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
    share: float | None,
) -> Iterator[_Part]:
    for row, (name, weight) in enumerate(weights.items()):
        try:
            if importance is not None and name not in importance:
                raise ValueError("has no importance")
            factors = None if importance is None else importance[name]
            for size, compute in space.error_parts(weight, factors, pieces, share):
                yield row, size, compute
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name}: {error}") from None
