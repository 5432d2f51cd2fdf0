"""Expected hypervolume improvement for one Gaussian and one known objective."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coalora_lib.search.pareto import staircase


def expected_hypervolume_improvement(
    mean: Tensor, std: Tensor, bits: Tensor, front: Tensor, reference: tuple[float, float]
) -> Tensor:
    """How much area a candidate is expected to add to what the front dominates, in closed form.

    A candidate's loss Y ~ N(mean, std^2) is uncertain, its bits b are not. Let L(t) be the least
    loss on the front at no more than t bits, capped at the reference. The candidate adds the
    area between L and Y to the right of b, so that

        EHVI = int_b^{b_ref} E[(L(t) - Y)^+] dt = sum_j w_j(b) std h((L_j - mean) / std)

    with L_j the steps of L, w_j(b) the part of step j to the right of b, and
    h(z) = z Phi(z) + phi(z) (expected improvement, Jones et al. 1998).

    Args:
        mean, std: (n,) of the predicted loss; std may be zero.
        bits: (n,) mean bits, known exactly.
        front: (m, 2) of [loss, bits], m >= 0; dominated rows change nothing.
        reference: (loss, bits), the corner the area is measured to.

    Returns:
        (n,) float64, non-negative, in units of loss times bits.
    """
    mean, std, bits = mean.double(), std.double(), bits.double()
    steps, edges = staircase(front, reference)
    widths = (edges[1:] - torch.maximum(edges[:-1], bits[:, None])).clamp(min=0)  # (n, m + 1)
    return (widths * expected_improvement(steps - mean[:, None], std[:, None])).sum(1)


def expected_improvement(gain: Tensor, std: Tensor) -> Tensor:
    """E[(gain + std N)^+] for a standard normal N; at std = 0 the positive part of the gain."""
    certain = std == 0
    z = gain / torch.where(certain, 1.0, std)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    uncertain = std * (z * torch.special.ndtr(z) + density)
    return torch.where(certain, gain, uncertain).clamp(min=0)
