"""A synthetic task loss over configurations whose Pareto front is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from coalora_lib.allocation import allocate, error_table, undominated
from coalora_lib.allocation.knapsack import solve
from coalora_lib.allocation.program import ROUNDING, bit_parts
from coalora_lib.spaces import NORMAL_FLOAT, mean_bits_cost

#: The loss that the landscape saturates at: the cross-entropy of a guess between two classes.
CHANCE = math.log(2)
#: The loss without quantization; made up, about that of a trained sentiment classifier.
LEAST = 0.2
#: S where every layer's weights are lost altogether, without interactions. Made up: 1 - exp(-6) is
#: 0.998, so that the loss at the fewest bits is close to a guess's.
STEEPNESS = 6.0


class Landscape:
    """f1(C) of a made-up model, whose layers differ in size and sensitivity and interact.

    With rho(c) the relative squared error of Gaussian weights under choice c, measured with the
    quantizer, and s_i the sensitivity of layer i, pairs of layers (i, j) add up

        S = sum_pairs  s_i rho_i + s_j rho_j + t_ij sqrt(s_i rho_i s_j rho_j),   -1 <= t_ij <= 1

    and the loss saturates, f1 = LEAST + (CHANCE - LEAST) (1 - exp(-S)), so that all layers
    interact. Since it rises with S, its Pareto front with the mean bits is that of S, a knapsack
    over pairs of layers, and known exactly. The allocation that the search starts from is given
    the errors and not the sensitivities, as on a real model.

    Args:
        layers: an even number; every third pair is four times as large, as in a transformer.
        seed: of sensitivities and interactions.

    Raises:
        ValueError: layers is not an even number, at least 2.
    """

    def __init__(self, layers: int, seed: int) -> None:
        if layers < 2 or layers % 2:
            raise ValueError(f"layers={layers} must be an even number, at least 2")
        generator = torch.Generator().manual_seed(seed)
        self.sizes = [(4 if (layer // 2) % 3 == 2 else 1) * 2**16 for layer in range(layers)]
        self.cost_of = mean_bits_cost(NORMAL_FLOAT, self.sizes)
        # The allocation is given each layer's sum of squared weights. The loss depends on that
        # times the layer's gain, which the allocation is not given.
        energy, gain = torch.randn(2, layers, generator=generator, dtype=torch.float64).exp()
        self.energy = energy * torch.tensor(self.sizes)
        self.sensitivity = STEEPNESS * energy * gain / (energy * gain).sum()
        self.interaction = 2 * torch.rand(layers // 2, generator=generator, dtype=torch.float64) - 1
        weights = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
        self._relative = error_table({"gaussian": weights})[0] / weights.double().square().sum()

    def __call__(self, indices: Tensor) -> Tensor:
        """(n, 5 * layers) integers to (n,) float64 losses."""
        own = self.sensitivity * self._relative[NORMAL_FLOAT.rows(indices)]
        pairs = own.reshape(len(own), -1, 2)
        total = (pairs.sum(2) + self.interaction * pairs.prod(2).sqrt()).sum(1)
        return self._saturated(total)

    def allocated(self, budgets: Sequence[float]) -> Tensor:
        """The configuration of least error within each budget: (budgets, 5 * layers) int64."""
        errors = self.energy[:, None] * self._relative
        found = [allocate(errors, self.sizes, budget).configs for budget in budgets]
        return NORMAL_FLOAT.to_flat(found)

    def front(self, budgets: Sequence[float]) -> Tensor:
        """The least loss within each budget, exact: (budgets, 2) of [loss, bits]."""
        costs, weights = [], []
        stored, whole = bit_parts(NORMAL_FLOAT, self.sizes)
        for pair, interaction in enumerate(self.interaction):
            i, j = 2 * pair, 2 * pair + 1
            first, second = (self.sensitivity[layer] * self._relative for layer in (i, j))
            both = (first[:, None] * second).sqrt()
            cost = (first[:, None] + second + interaction * both).flatten()
            weight = (stored[i][:, None] + stored[j]).flatten()
            kept = undominated(cost, weight)
            costs.append(cost[kept].numpy())
            weights.append(weight[kept].numpy())
        points = []
        for budget in budgets:
            picked = solve(costs, weights, math.floor(budget * whole + ROUNDING))
            if picked is None:
                raise RuntimeError(f"too many partial solutions at {budget} bits")
            total = sum(c[p] for c, p in zip(costs, picked, strict=True))
            used = sum(w[p].item() for w, p in zip(weights, picked, strict=True))
            points.append((self._saturated(torch.tensor(total)).item(), used / whole))
        return torch.tensor(points, dtype=torch.float64)

    @staticmethod
    def _saturated(total: Tensor) -> Tensor:
        return LEAST + (CHANCE - LEAST) * -torch.expm1(-total)
