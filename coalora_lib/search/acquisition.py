"""Expected hypervolume improvement for one Gaussian and one known objective."""

import math

import torch
from torch import Tensor

from coalora_lib.search.arrays import as_numbers
from coalora_lib.search.pareto import staircase

#: Below this z the two terms of h(z) cancel, and the form with the scaled erfc takes over (the
#: point where Ament et al. 2023 switch).
CANCELLING = -1.0
#: Below this z the scaled form cancels too: 1 + z Phi(z) / phi(z) is about 1 / z^2, of which
#: float64 keeps ten digits here. The series 1 - 3 / z^2 is off by about 15 / z^4, below 2e-11.
DISTANT = -1e3


def expected_hypervolume_improvement(
    mean: Tensor,
    std: Tensor,
    cost: Tensor,
    front: Tensor,
    reference: tuple[float, float],
    log: bool = False,
) -> Tensor:
    """The area that a candidate is expected to add to the front's hypervolume, in closed form.

    A candidate's loss Y ~ N(mean, std^2) is uncertain, its cost c is not. Let L(t) be the least
    loss on the front at a cost of at most t, capped at the reference. The candidate adds the area
    between L and Y to the right of c, so that

        EHVI = int_c^{c_ref} E[(L(t) - Y)^+] dt = sum_j w_j(c) std h((L_j - mean) / std)

    with L_j the steps of L, w_j(c) the part of step j to the right of c, and
    h(z) = z Phi(z) + phi(z) (expected improvement, Jones et al. 1998).

    Args:
        mean, std, cost: (n,); std may be zero; a cost of +inf improves nothing.
        front: (m, 2) of [loss, cost], m >= 0; dominated rows change nothing.
        reference: (loss, cost), the corner the area is measured to.
        log: return the logarithm, which tells candidates apart whose improvement is too small
            for a float; -inf where it is zero.

    Returns:
        (n,) float64 in units of loss times cost, non-negative; or its logarithm.

    Raises:
        ValueError: mean, std and cost differ in length, one is NaN, or a std is negative.
        TypeError: the values are not numbers.
    """
    mean, std, cost = (
        as_numbers(name, values).double()
        for name, values in (("mean", mean), ("std", std), ("cost", cost))
    )
    _check(mean, std, cost)
    return improvement_over(mean, std, cost, staircase(front, reference), log)


def improvement_over(
    mean: Tensor, std: Tensor, cost: Tensor, stairs: tuple[Tensor, Tensor], log: bool = False
) -> Tensor:
    """:func:`expected_hypervolume_improvement` over a front's staircase; float64, not checked."""
    losses, edges = stairs
    widths = (edges[1:] - torch.maximum(edges[:-1], cost[:, None])).clamp(min=0)  # (n, m + 1)
    gains = losses - mean[:, None]
    if log:
        parts = widths.log() + log_expected_improvement(gains, std[:, None])
        return parts.logsumexp(1)
    return (widths * expected_improvement(gains, std[:, None])).sum(1)


def expected_improvement(gain: Tensor, std: Tensor) -> Tensor:
    """E[(gain + std N)^+] for a standard normal N; at std = 0 the positive part of the gain."""
    certain = std == 0
    z = gain / torch.where(certain, 1.0, std)
    # erfc, since torch.special.ndtr is not exact in the lower tail.
    uncertain = gain * torch.erfc(z * -math.sqrt(0.5)) * 0.5 + std * _density(z)
    return torch.where(certain, gain, uncertain).clamp(min=0)


def log_expected_improvement(gain: Tensor, std: Tensor) -> Tensor:
    """The logarithm of :func:`expected_improvement`, to full precision however small that is.

    log h(z) = log phi(z) + log(1 + z Phi(z) / phi(z)), and Phi(z) / phi(z) is
    sqrt(pi / 2) erfcx(-z / sqrt(2)), which does not underflow (Ament et al., arXiv 2310.20708).
    """
    certain = std == 0
    z = gain / torch.where(certain, 1.0, std)
    near = z.clamp(min=CANCELLING)
    near = (near * torch.erfc(near * -math.sqrt(0.5)) * 0.5 + _density(near)).log()
    tail = z.clamp(DISTANT, CANCELLING)
    ratio = math.sqrt(math.pi / 2) * torch.special.erfcx(tail * -math.sqrt(0.5))
    tail = _log_density(tail) + torch.log1p(tail * ratio)
    far = z.clamp(max=DISTANT)
    far = _log_density(far) - 2 * (-far).log() + torch.log1p(-3 / far.square())
    log_h = torch.where(z > CANCELLING, near, torch.where(z > DISTANT, tail, far))
    return torch.where(certain, gain.clamp(min=0).log(), std.log() + log_h)


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _log_density(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _check(mean: Tensor, std: Tensor, cost: Tensor) -> None:
    if not mean.shape == std.shape == cost.shape or mean.ndim != 1:
        shapes = ", ".join(str(tuple(values.shape)) for values in (mean, std, cost))
        raise ValueError(f"mean, std and cost must be of one shape (n,), got {shapes}")
    for name, values in (("mean", mean), ("std", std), ("cost", cost)):
        if values.isnan().any():
            row = int(values.isnan().nonzero()[0])
            raise ValueError(f"{name} of candidate {row} is nan")
    if (std < 0).any():
        row = int((std < 0).nonzero()[0])
        raise ValueError(f"std of candidate {row} is {std[row]:g}; it must not be negative")
