"""The Gaussian process on the task loss of a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from botorch.exceptions.warnings import OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor


class Surrogate:
    """A GP from a configuration's integers to its loss, fitted when it is made.

    The integers are scaled to [0, 1] by their ranges, the losses standardized. The kernel is
    botorch's default: RBF with one length scale a dimension and a prior that grows with the
    square root of the dimension, without which 180 dimensions make every point a stranger to
    every other and the posterior flat.

    Args:
        configurations: (n, d) integer indices, n >= 2.
        losses: (n,) finite.
        choices: (d,) number of values of each coordinate.

    Raises:
        ValueError: shapes disagree, fewer than two configurations, or a loss is not finite.
    """

    def __init__(
        self, configurations: Tensor, losses: Tensor, choices: Sequence[int] | Tensor
    ) -> None:
        self.ranges = (torch.as_tensor(choices) - 1).clamp(min=1).double()
        if configurations.ndim != 2 or configurations.shape != (len(losses), len(self.ranges)):
            raise ValueError(
                f"configurations must be ({len(losses)}, {len(self.ranges)}), "
                f"got {tuple(configurations.shape)}"
            )
        if len(losses) < 2:
            raise ValueError(
                f"a Gaussian process needs two scored configurations, got {len(losses)}"
            )
        if not torch.isfinite(losses).all():
            row = int((~torch.isfinite(losses)).nonzero()[0])
            raise ValueError(f"the loss of configuration {row} is {losses[row]}")
        self.model = SingleTaskGP(
            configurations / self.ranges, losses.double()[:, None], outcome_transform=Standardize(1)
        )
        likelihood = ExactMarginalLogLikelihood(self.model.likelihood, self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizationWarning)
            fit_gpytorch_mll(likelihood)

    @torch.no_grad()
    def predict(self, configurations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the loss: (n, d) integers to two (n,) float64."""
        posterior = self.model.posterior((configurations / self.ranges)[:, None])
        return posterior.mean.flatten(), posterior.variance.sqrt().flatten()
