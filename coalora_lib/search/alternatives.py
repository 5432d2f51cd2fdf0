"""The strategies: the coordinate walk, and the ones that it is compared with.

A strategy takes a :class:`ScoredSet` and returns up to ``count`` configurations to score next, all
of them new and allowed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.optim import optimize_acqf_discrete_local_search
from botorch.utils.transforms import t_batch_mode_transform
from numpy.typing import NDArray
from torch import Tensor

from coalora_lib.search.acquisition import expected_hypervolume_improvement
from coalora_lib.search.cost import Cost, finite_costs, is_allowed, swept
from coalora_lib.search.surrogate import Surrogate
from coalora_lib.search.walk import Acquisition, propose

#: Passes over the coordinates in which a random configuration that is not allowed is redrawn. After
#: one, a coordinate of which half of the values are allowed has kept its first value with
#: probability 1/2; after four, with 1/16.
SWEEPS = 4
#: pymoo's distribution index of crossover and mutation, from its example for integer variables.
SPREAD_INDEX = 3.0


@dataclass(frozen=True)
class ScoredSet:
    """What a strategy sees: (n, d) configurations and (n,) losses; see :func:`.propose`."""

    configurations: Tensor
    losses: Tensor
    cost_of: Cost
    cardinalities: Sequence[int]
    groups: Sequence[int] | Tensor | None = None

    def extended(self, configurations: Tensor, losses: Tensor) -> Self:
        """The set with further scored configurations at its end."""
        return replace(
            self,
            configurations=torch.cat([self.configurations, configurations]),
            losses=torch.cat([self.losses, losses]),
        )


Strategy = Callable[[ScoredSet, int, int | None, int], Tensor]


def walk_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """The method of this book: :func:`~coalora_lib.search.propose` with ``count`` restarts."""
    return propose(
        scored.configurations,
        scored.losses,
        scored.cost_of,
        scored.cardinalities,
        count,
        max_steps,
        seed,
        scored.groups,
    ).configurations


def random_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """Configurations drawn uniformly, as in the paper's ablation; the scores are not used.

    A draw that is not allowed is replaced by a chain of :data:`SWEEPS` sweeps of uniform
    single-coordinate draws, which starts from a scored configuration and rejects what is not
    allowed: its stationary distribution is uniform over the allowed configurations.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _uniform(scored.cardinalities, 4 * count, generator)  # some may be scored, or repeat
    outside = ~is_allowed(scored.cost_of(rows))
    if outside.any():
        ends = int(outside.sum())
        here = scored.configurations[
            torch.randint(len(scored.losses), (ends,), generator=generator)
        ]
        finite_costs(scored.cost_of, here)
        for _ in range(SWEEPS):
            here = swept(scored.cost_of, here, _uniform(scored.cardinalities, ends, generator))
        rows[outside] = here
    return new_rows(scored.configurations, rows, count)


def _uniform(cardinalities: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """(count, d) integers, each uniform over its coordinate's values."""
    columns = [torch.randint(int(n), (count,), generator=generator) for n in cardinalities]
    return torch.stack(columns, dim=1)


def nsga2_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """Offspring of one generation of NSGA-II (Deb et al. 2002) from the scored set, by pymoo.

    An offspring that is not allowed is replaced by a scored configuration that takes over what is
    allowed of it (:func:`swept`).
    """
    # pymoo drops duplicates, but not from the objectives.
    population, first = np.unique(scored.configurations.numpy(), axis=0, return_index=True)
    costs = finite_costs(scored.cost_of, scored.configurations)
    objectives = torch.stack([scored.losses.double(), costs], dim=1)[first].numpy()
    highest = np.asarray(scored.cardinalities) - 1
    offspring = _nsga2_offspring(population, objectives, highest, 2 * count, seed)
    if offspring is None:
        return scored.configurations[:0]
    rows = torch.from_numpy(np.minimum(offspring, highest))
    outside = ~is_allowed(scored.cost_of(rows))
    if outside.any():
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(scored.losses), (int(outside.sum()),), generator=generator)
        rows[outside] = swept(scored.cost_of, scored.configurations[drawn], rows[outside])
    return new_rows(scored.configurations, rows, count)


def _nsga2_offspring(
    population: NDArray[np.int64],
    objectives: NDArray[np.float64],
    highest: NDArray[np.int64],
    count: int,
    seed: int,
) -> NDArray[np.int64] | None:
    """(k, d) offspring of a population with known (n, 2) objectives; None if pymoo finds none."""
    # Imported here, so that only a comparison needs the package.
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.problems.static import StaticProblem

    problem = Problem(n_var=len(highest), n_obj=2, xl=0, xu=np.maximum(highest, 1), vtype=int)
    rounded = RoundingRepair()
    algorithm = NSGA2(
        pop_size=len(population),
        n_offsprings=count,
        sampling=population,
        crossover=SBX(eta=SPREAD_INDEX, vtype=float, repair=rounded),
        mutation=PM(eta=SPREAD_INDEX, vtype=float, repair=rounded),
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    parents = algorithm.ask()
    Evaluator().eval(StaticProblem(problem, F=objectives), parents)
    algorithm.tell(infills=parents)
    offspring = algorithm.ask()
    return None if offspring is None else offspring.get("X").astype(np.int64)


def local_search_proposals(
    scored: ScoredSet, count: int, max_steps: int | None = None, seed: int = 0
) -> Tensor:
    """botorch's discrete local search on the same acquisition, from the front, one at a time.

    It climbs until no neighbour is better, whatever ``max_steps``. A neighbour that is not
    allowed has an acquisition of zero, which is never better.
    """
    surrogate = Surrogate(scored.configurations, scored.losses, scored.cardinalities, scored.groups)
    highest = surrogate.cardinalities - 1
    ours = Acquisition(surrogate, scored.losses, scored.cost_of)
    theirs = BotorchAcquisition(ours)
    grid = [torch.arange(int(n)).double() / max(int(n) - 1, 1) for n in surrogate.cardinalities]
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
        found.append((best[0] * highest).round().long())
    return new_rows(scored.configurations, torch.stack(found), count)


class BotorchAcquisition(AcquisitionFunction):
    """Our closed form over botorch's posterior, for botorch's optimizers."""

    def __init__(self, ours: Acquisition) -> None:
        super().__init__(ours.surrogate.model)
        self._ours = ours

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """(b, 1, d) scaled configurations to (b,)."""
        posterior = self.model.posterior(X)
        ranges = (self._ours.surrogate.cardinalities - 1).clamp(min=1)
        return expected_hypervolume_improvement(
            posterior.mean.flatten(),
            posterior.variance.flatten().sqrt(),
            self._ours.cost_of((X[:, 0] * ranges).round().long()),
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


#: By the name that a :class:`~coalora_lib.search.SearchPlan` has for it.
STRATEGIES: dict[str, Strategy] = {
    "walk": walk_proposals,
    "random": random_proposals,
    "nsga2": nsga2_proposals,
    "local search": local_search_proposals,
}
