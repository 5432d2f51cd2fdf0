"""What the walk is compared with: other ways to say which configurations to score next.

A strategy takes a :class:`ScoredSet` and returns up to ``count`` new configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.optim import optimize_acqf_discrete_local_search
from botorch.utils.transforms import t_batch_mode_transform
from torch import Tensor

from coalora_lib.search.acquisition import expected_hypervolume_improvement
from coalora_lib.search.moves import Bits
from coalora_lib.search.surrogate import Surrogate
from coalora_lib.search.walk import Acquisition, propose


@dataclass(frozen=True)
class ScoredSet:
    """What a strategy sees; arguments as :func:`~coalora_lib.search.propose`.

    Attributes:
        configurations: (n, d) integers; losses: (n,) their scores.
        bits_of: mean bits of (k, d) integers.
        choices: (d,) number of values of each coordinate.
        groups: (d,) coordinates that are alike; None if none are.
    """

    configurations: Tensor
    losses: Tensor
    bits_of: Bits
    choices: Sequence[int]
    groups: Sequence[int] | Tensor | None = None

    def extended(self, configurations: Tensor, losses: Tensor) -> ScoredSet:
        """The set with further scored configurations behind."""
        return replace(
            self,
            configurations=torch.cat([self.configurations, configurations]),
            losses=torch.cat([self.losses, losses]),
        )


Strategy = Callable[[ScoredSet, int, int | None, int], Tensor]


def walk_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """The method of this book: :func:`~coalora_lib.search.propose` with ``count`` starts."""
    return propose(
        scored.configurations,
        scored.losses,
        scored.bits_of,
        scored.choices,
        count,
        max_steps,
        seed,
        scored.groups,
    ).configurations


def random_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """Configurations drawn uniformly, as in the paper's ablation; the scores are not used."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(int(n), (4 * count,), generator=generator) for n in scored.choices]
    return new_rows(scored.configurations, torch.stack(columns, dim=1), count)


def nsga2_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """Offspring of one generation of NSGA-II (Deb et al. 2002) from the scored set, by pymoo.

    Crossover and mutation are pymoo's for integers.
    """
    # here, so that only who compares needs the package
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.problems.static import StaticProblem

    # pymoo drops duplicates, but not from the objectives.
    population, first = np.unique(scored.configurations.numpy(), axis=0, return_index=True)
    bits = scored.bits_of(scored.configurations)
    objectives = torch.stack([scored.losses.double(), bits], dim=1)[first].numpy()
    highest = np.asarray(scored.choices) - 1
    problem = Problem(n_var=len(highest), n_obj=2, xl=0, xu=np.maximum(highest, 1), vtype=int)
    rounded = RoundingRepair()
    algorithm = NSGA2(
        pop_size=len(population),
        n_offsprings=2 * count,
        sampling=population,
        crossover=SBX(eta=3.0, vtype=float, repair=rounded),
        mutation=PM(eta=3.0, vtype=float, repair=rounded),
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    parents = algorithm.ask()
    Evaluator().eval(StaticProblem(problem, F=objectives), parents)
    algorithm.tell(infills=parents)
    offspring = algorithm.ask()
    if offspring is None:  # it found nothing that is new
        return scored.configurations[:0]
    rows = np.minimum(offspring.get("X").astype(np.int64), highest)
    return new_rows(scored.configurations, torch.from_numpy(rows), count)


def local_search_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """botorch's discrete local search on the same acquisition, from the front, one at a time.

    ``max_steps`` is not used: it climbs until no neighbour is better.
    """
    choices = scored.choices
    surrogate = Surrogate(scored.configurations, scored.losses, choices, scored.groups)
    ours = Acquisition(surrogate, scored.losses, scored.bits_of)
    theirs = BotorchAcquisition(ours)
    grid = [torch.arange(int(n)).double() / max(int(n) - 1, 1) for n in choices]
    avoided = surrogate.scale(scored.configurations)
    generator = torch.Generator().manual_seed(seed)
    drawn = ours.rows[torch.randperm(len(ours.rows), generator=generator)[:count]]
    found = []
    for start in avoided[drawn]:
        best, _ = optimize_acqf_discrete_local_search(
            theirs,
            grid,
            q=1,
            num_restarts=1,
            # It drops starts that are to be avoided, and ours are scored configurations.
            X_avoid=avoided[(avoided != start).any(1)],
            batch_initial_conditions=start[None, None],
        )
        avoided = torch.cat([avoided, best])
        found.append((best[0] * (torch.as_tensor(choices) - 1)).round().long())
    return new_rows(scored.configurations, torch.stack(found), count)


class BotorchAcquisition(AcquisitionFunction):
    """Our closed form over botorch's posterior: what its optimizers and models see of ours."""

    def __init__(self, ours: Acquisition) -> None:
        super().__init__(ours.surrogate.model)
        self._ours = ours

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """(b, 1, d) scaled configurations to (b,)."""
        posterior = self.model.posterior(X)
        ranges = (self._ours.surrogate.choices - 1).clamp(min=1)
        return expected_hypervolume_improvement(
            posterior.mean.flatten(),
            posterior.variance.flatten().sqrt(),
            self._ours.bits_of((X[:, 0] * ranges).round().long()),
            self._ours.front,
            self._ours.reference,
        )


def new_rows(scored: Tensor, rows: Tensor, count: int) -> Tensor:
    """The first ``count`` distinct rows that are not among the scored ones."""
    seen, found = set(map(tuple, scored.tolist())), []
    for row in rows.tolist():
        if tuple(row) not in seen:
            seen.add(tuple(row))
            found.append(row)
    return torch.tensor(found[:count], dtype=torch.int64).reshape(-1, scored.shape[1])


#: By the name that a :class:`~coalora_lib.training.SearchPlan` has for it.
STRATEGIES: dict[str, Strategy] = {
    "walk": walk_proposals,
    "random": random_proposals,
    "nsga2": nsga2_proposals,
    "local search": local_search_proposals,
}
