"""The Gaussian process on the task loss of a configuration."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import RBFKernel
from gpytorch.kernels.rbf_kernel import postprocess_rbf
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from scipy.optimize import minimize
from torch import Tensor

from coalora_lib.search.arrays import as_numbers

#: The shortest length scale, as a part of a coordinate's range. Two neighbours of a coordinate
#: with four values are then 3.3 length scales apart and their correlation is exp(-3.3^2 / 2), below
#: 0.4 %: a shorter one would change nothing.
SHORTEST = 0.1


class Surrogate:
    """A GP from a configuration's integers to its loss, fitted when it is made.

    The integers are scaled to [0, 1] by their ranges, the losses standardized. The kernel is RBF,

        k(x, x') = prod_i exp(-(x_i - x'_i)^2 / (2 l_i^2)),

    with one length scale for each group of coordinates: a few dozen losses cannot tell hundreds of
    length scales apart. A length scale's prior has a median that grows with the root of the number
    of coordinates (Hvarfner et al. 2024, arXiv 2402.02229); without that, the posterior mean is
    constant in 180 dimensions.

    Args:
        configurations: (n, d) integer indices, n >= 2.
        losses: (n,) finite.
        cardinalities: (d,) number of values of each coordinate.
        groups: (d,) integers from 0, the same for coordinates that share a length scale; by
            default each has its own.

    Attributes:
        model: the fitted botorch model; its inputs are :meth:`scale` of the integers.
        length_scales: (d,) float64, as parts of the coordinates' ranges.
        noise: fitted standard deviation of a score around the loss that is predicted.

    Raises:
        ValueError: an argument is not as described.
        TypeError: the values are not numbers.
    """

    def __init__(
        self,
        configurations: Tensor,
        losses: Tensor,
        cardinalities: Sequence[int] | Tensor,
        groups: Sequence[int] | Tensor | None = None,
    ) -> None:
        configurations, losses = (
            as_numbers(name, values)
            for name, values in (("configurations", configurations), ("losses", losses))
        )
        self.cardinalities = as_numbers("cardinalities", cardinalities)
        self._ranges = (self.cardinalities - 1).clamp(min=1).double()
        coordinates = torch.arange(len(self.cardinalities))
        groups = coordinates if groups is None else as_numbers("groups", groups)
        _check(configurations, losses, self.cardinalities, groups)
        self.configurations = configurations.long()
        losses = losses.detach()
        self.model = SingleTaskGP(
            self.scale(self.configurations),
            losses.double()[:, None],
            covar_module=dimension_scaled_kernel(groups),
            outcome_transform=Standardize(1),
        )
        _fit(self.model)
        self.length_scales = self.model.covar_module.lengthscale.detach()[0, groups]
        self._center = self.model.mean_module.constant.item()
        self._offset = self.model.outcome_transform.means.item()
        self._unit = self.model.outcome_transform.stdvs.item()
        self.noise = self.model.likelihood.noise.item() ** 0.5 * self._unit
        self._condition(self.model.train_targets - self._center)

    def _condition(self, residuals: Tensor) -> None:
        """Factorize the kernel matrix of the configurations, given their standardized residuals."""
        self._residuals = residuals
        self._points = self.scale(self.configurations)
        identity = torch.eye(len(residuals), dtype=torch.float64)
        noise = self.model.likelihood.noise.item()
        factor = torch.linalg.cholesky(self._kernel(self._points) + noise * identity)
        self._weights = torch.cholesky_solve(residuals[:, None], factor)[:, 0]
        self._inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)

    def condition_on(self, configurations: Tensor) -> Self:
        """A new surrogate, conditioned on (k, d) more configurations with the losses it predicts.

        The mean stays as it is everywhere and the uncertainty around them shrinks (the kriging
        believer of Ginsbourger et al. 2010), so that the next proposal goes elsewhere.
        """
        conditioned = copy.copy(self)
        mean, _ = self.predict(configurations)
        conditioned.configurations = torch.cat([self.configurations, configurations])
        residuals = torch.cat([self._residuals, (mean - self._offset) / self._unit - self._center])
        conditioned._condition(residuals)  # noqa: SLF001 (another one of this class)
        return conditioned

    def scale(self, configurations: Tensor) -> Tensor:
        """Integers to [0, 1], the inputs of the model, float64."""
        return configurations / self._ranges

    def predict(self, configurations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the loss: (k, d) integers to two (k,) float64."""
        return self.posterior(self._kernel(self.scale(configurations)))

    def posterior(self, covariances: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation from covariances with the scored configurations, (k, n)."""
        mean = self._center + covariances @ self._weights
        explained = (covariances @ self._inverse_factor.T).square().sum(-1)
        std = (1 - explained).clamp(min=0).sqrt()
        return self._offset + self._unit * mean, self._unit * std

    def log_factors(self) -> Tensor:
        """Log of the factor that a coordinate contributes to covariances: (d, values, n) float64.

        Of scored configuration n with one whose coordinate has that value, up to the largest
        cardinality.
        """
        values = torch.arange(int(self.cardinalities.max()))
        distance = (values[:, None] - self.configurations.T[:, None]) / self._ranges[:, None, None]
        return -0.5 * (distance / self.length_scales[:, None, None]).square()

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Each scored loss predicted from all others: mean and standard deviation, (n,) each.

        In closed form, at the fitted hyperparameters (Rasmussen and Williams 2006, equation 5.12);
        the standard deviation is that of the observed loss, noise included.
        """
        precision = (self._inverse_factor.square()).sum(0)
        mean = self._center + self._residuals - self._weights / precision
        return self._offset + self._unit * mean, self._unit * precision.rsqrt()

    def _kernel(self, points: Tensor) -> Tensor:
        """(k, d) scaled points to (k, n) covariances with the scored ones."""
        distance = torch.cdist(
            points / self.length_scales,
            self._points / self.length_scales,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        return torch.exp(-0.5 * distance.square())


class GroupedRBFKernel(RBFKernel):
    """RBF whose coordinates share length scales by group: (d,) int64 from 0."""

    groups: Tensor

    def __init__(self, groups: Tensor, **options) -> None:
        super().__init__(ard_num_dims=int(groups.max()) + 1, **options)
        self.ard_num_dims = len(groups)  # what gpytorch compares its inputs with
        self.register_buffer("groups", groups)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params):
        """The kernel matrix of (..., n, d) and (..., m, d) points."""
        scales = self.lengthscale[..., self.groups]
        distance = self.covar_dist(x1 / scales, x2 / scales, square_dist=True, diag=diag, **params)
        return postprocess_rbf(distance)


def dimension_scaled_kernel(groups: Tensor) -> GroupedRBFKernel:
    """RBF with one length scale per group; log l ~ N(sqrt(2) + log(d) / 2, 3), d coordinates."""
    prior = LogNormalPrior(math.sqrt(2) + 0.5 * math.log(len(groups)), math.sqrt(3))
    constraint = GreaterThan(SHORTEST, transform=None, initial_value=prior.mode)
    return GroupedRBFKernel(groups, lengthscale_prior=prior, lengthscale_constraint=constraint)


def _fit(model: SingleTaskGP) -> None:
    """Maximise the posterior of the hyperparameters, by L-BFGS-B over their logarithms.

    Over their values, as in botorch, the same optimizer takes ten times as many steps and ends no
    lower: noise and length scales may be of any order of magnitude.
    """
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model).train()
    closure = map_closure(likelihood)
    noise, kernel = model.likelihood.noise_covar, model.covar_module
    # As in the closure, the raw parameters are the values.
    positive = {
        noise.raw_noise: noise.raw_noise_constraint.lower_bound.item(),
        kernel.raw_lengthscale: SHORTEST,
    }
    parameters = [*positive, model.mean_module.raw_constant]

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        parts = torch.from_numpy(point).split([each.numel() for each in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            value = part.exp() if parameter in positive else part
            parameter.data.copy_(value.view_as(parameter))
        loss, _ = closure()
        slopes = [
            (each.grad * each.data if each in positive else each.grad).flatten()
            for each in parameters
        ]
        return loss.item(), torch.cat(slopes).numpy()

    starts = [each.data.log() if each in positive else each.data for each in parameters]
    bounds = [(math.log(low), None) for each, low in positive.items() for _ in range(each.numel())]
    begin = torch.cat([each.flatten() for each in starts]).double().numpy()
    found = minimize(evaluate, begin, jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)])
    evaluate(found.x)  # the last point that was tried may not be the best
    likelihood.eval()


def map_closure(
    likelihood: ExactMarginalLogLikelihood,
) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """The loss that the fit minimises, and its analytic gradient, which botorch's fits take too.

    The loss is minus the log posterior of noise s, constant m and length scales l, divided by the
    number of points n, as in botorch. With K the kernel matrix, a = (K + sI)^-1 (y - m) and
    W = ((K + sI)^-1 - a a^T) / 2 (Rasmussen and Williams 2006, equation 5.9),

        dloss/dl_i = sum_pq W_pq K_pq (x_pi - x_qi)^2 / l_i^3,    dloss/ds = tr W,

    and with V = W * K the sum over pairs is 2 (sum_p (V 1)_p x_pi^2 - x_i^T V x_i): one product
    for all coordinates, where automatic differentiation handles d matrices of n x n. The gradient
    of a group's length scale is the sum over its coordinates.
    """
    model = likelihood.model
    points, values = model.train_inputs[0], model.train_targets
    kernel, noise = model.covar_module, likelihood.likelihood.noise_covar
    mean = model.mean_module
    priors = (kernel.lengthscale_prior, noise.noise_prior)
    (n, _), squares = points.shape, points.square()
    identity = torch.eye(n, dtype=torch.float64)

    @torch.no_grad()
    def closure() -> tuple[Tensor, list[Tensor]]:
        # The constraints are bounds, not transforms: the raw parameters are the values.
        shared, variance = kernel.raw_lengthscale[0], noise.raw_noise[0]
        scales = shared[kernel.groups]
        scaled = points / scales
        gram = scaled @ scaled.T
        norms = gram.diagonal()
        covariance = torch.exp(gram - 0.5 * (norms[:, None] + norms))
        factor = torch.linalg.cholesky(covariance + variance * identity)
        inverse = torch.cholesky_inverse(factor)
        residual = values - mean.constant
        weights = inverse @ residual
        fit = 0.5 * (residual @ weights + n * math.log(2 * math.pi)) + factor.diagonal().log().sum()
        log_prior = sum(
            prior.log_prob(value).sum()
            for prior, value in zip(priors, (shared, variance), strict=True)
        )
        slope = 0.5 * (inverse - weights[:, None] * weights)
        pairs = slope * covariance
        spread = 2 * (pairs.sum(1) @ squares - (points * (pairs @ points)).sum(0))
        by_scale = torch.zeros_like(shared).index_add(0, kernel.groups, spread / scales**3)
        by_scale -= _log_normal_slope(priors[0], shared)
        by_noise = slope.trace() - _log_normal_slope(priors[1], variance)
        gradients = {
            noise.raw_noise: by_noise[None],
            mean.raw_constant: -weights.sum(),
            kernel.raw_lengthscale: by_scale[None],
        }
        for parameter, gradient in gradients.items():
            parameter.grad = gradient / n
        return (fit - log_prior) / n, [parameter.grad for parameter in gradients]

    return closure


def _log_normal_slope(prior: LogNormalPrior, value: Tensor) -> Tensor:
    """d log p(value) / d value."""
    return -(1 + (value.log() - prior.loc) / prior.scale**2) / value


def _check(configurations: Tensor, losses: Tensor, cardinalities: Tensor, groups: Tensor) -> None:
    if losses.ndim != 1 or configurations.shape != (len(losses), len(cardinalities)):
        raise ValueError(
            f"configurations must be ({len(losses)}, {len(cardinalities)}) and losses one for "
            f"each, got {tuple(configurations.shape)} and {tuple(losses.shape)}"
        )
    if len(losses) < 2:
        raise ValueError(f"a Gaussian process needs two scored configurations, got {len(losses)}")
    if not len(cardinalities):
        raise ValueError("cardinalities is empty: there is no coordinate to search")
    if (fractions := configurations != configurations.nan_to_num(0.5).floor()).any():
        row, column = fractions.nonzero()[0].tolist()
        raise ValueError(
            f"coordinate {column} of configuration {row} is "
            f"{configurations[row, column]:g}, which is not an integer"
        )
    outside = (configurations < 0) | (configurations >= cardinalities)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"coordinate {column} of configuration {row} is {configurations[row, column]}; "
            f"allowed: 0 to {cardinalities[column] - 1}"
        )
    if not torch.isfinite(losses).all():
        row = int((~torch.isfinite(losses)).nonzero()[0])
        raise ValueError(f"the loss of configuration {row} is {losses[row]}")
    if groups.shape != cardinalities.shape or not torch.equal(
        groups.unique(), torch.arange(len(groups.unique()))
    ):
        raise ValueError(f"groups must be {len(cardinalities)} integers from 0 with none left out")
