"""The integer program of the allocation: exactly, by one knapsack where one limit binds."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from coalora_lib.allocation import knapsack


@dataclass(frozen=True)
class Limit:
    """A bound on a cost that is a sum over layers: (layers, choices) int64, not negative."""

    costs: NDArray[np.int64]
    most: int
    name: str = "cost"


def undominated(errors: Tensor, bits: Tensor) -> Tensor:
    """The choices of one layer, (choices,), that no other choice beats in both error and bits.

    (kept,) int64 in strictly ascending bits and descending error: the layer's staircase.
    """
    return torch.from_numpy(knapsack.undominated(errors.numpy(), bits.numpy()))


def solve(
    errors: Tensor, choices: Sequence[Tensor], limits: Sequence[Limit]
) -> tuple[list[int], float]:
    """The choice of each layer with the least total error, and the gap proven.

    ``errors`` are (layers, choices), ``choices`` the rows that each layer may take; each limit is
    feasible by itself.
    """
    if not limits:
        return [int(rows[errors[i, rows].argmin()]) for i, rows in enumerate(choices)], 0.0
    for limit in limits:  # if the solution under one limit meets the others, they do not bind
        picked = _solve_one(errors, choices, limit)
        if picked is None:
            break
        layers = range(len(picked))
        if all(sum(other.costs[layers, picked]) <= other.most for other in limits):
            return picked, 0.0
    return integer_program(errors, choices, limits)


def _solve_one(errors: Tensor, choices: Sequence[Tensor], limit: Limit) -> list[int] | None:
    kept = [
        rows[undominated(errors[i, rows], torch.from_numpy(limit.costs[i])[rows])].numpy()
        for i, rows in enumerate(choices)
    ]
    costs = [errors[i, rows].double().numpy() for i, rows in enumerate(kept)]
    weights = [limit.costs[i, rows] for i, rows in enumerate(kept)]
    picked = knapsack.solve(costs, weights, limit.most)
    if picked is None:
        return None
    return [int(rows[position]) for rows, position in zip(kept, picked, strict=True)]


def integer_program(
    errors: Tensor, choices: Sequence[Tensor], limits: Sequence[Limit]
) -> tuple[list[int], float]:
    """:func:`solve` as it is written down, by SciPy's HiGHS: any number of limits.

    ValueError if no configuration meets all limits at once, RuntimeError if the solver gave up.
    """
    lengths = [len(rows) for rows in choices]
    cost = np.concatenate([errors[i, rows].numpy() for i, rows in enumerate(choices)])
    scale = sum(float(errors[i, rows].min()) for i, rows in enumerate(choices)) or 1.0
    one_choice = scipy.sparse.block_diag([np.ones((1, n)) for n in lengths], format="csr")
    constraints = [scipy.optimize.LinearConstraint(one_choice, 1, 1)]
    for limit in limits:
        stored = [limit.costs[i, rows] for i, rows in enumerate(choices)]
        row = np.concatenate(stored).astype(float)[None]
        constraints.append(scipy.optimize.LinearConstraint(row, -np.inf, limit.most))
    with _quiet_solver():
        solution = scipy.optimize.milp(
            cost / scale,  # the solver's absolute tolerances are made for objectives about 1
            integrality=np.ones(len(cost)),
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
    if solution.status == 2:
        raise ValueError("no configuration meets all limits")
    if solution.x is None:
        raise RuntimeError(f"the integer program was not solved: {solution.message}")
    parts = np.split(solution.x, np.cumsum(lengths)[:-1])
    picked = [int(rows[part.argmax()]) for rows, part in zip(choices, parts, strict=True)]
    return picked, float(solution.mip_gap or 0.0)


@contextmanager
def _quiet_solver() -> Iterator[None]:
    """Drop what HiGHS prints from C whatever its options say; a notebook would store it."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
