"""Low-rank terms that give back what quantization takes from a layer's output, in closed form.

A layer computes Q x where W x was meant. Of all M of rank k, which is the best beside Q?

**By itself** (QERA, arXiv 2410.06040). The inputs are those of the unquantized model, with second
moment R = E[x x^T], and D = W - Q is lost. The term with the least E || (D - M) x ||^2 is

    M = U U^T D,    U the k leading eigenvectors of D R D^T = E[(D x) (D x)^T]:

it gives back the principal directions of the lost output. QERA writes SVD_k(D R^1/2) R^-1/2, which
is the same matrix; this form needs neither the root nor the inverse of R, so that inputs that are
always zero, or always equal to each other, are no special case.

**In order** (reduced-rank regression, Izenman 1975). The inputs x~ are those of the model as it is
quantized and corrected up to this layer, and e = W x - Q x~ is missing. With C = E[e x~^T] and
R = E[x~ x~^T], least squares give B = C R^-1, and the best term of rank k is

    M = U U^T B,    U the k leading eigenvectors of B R B^T = C B^T.

**What matters.** Not every error of an output does the same harm. With G = E[g g^T], g the gradient
of what the model says with respect to this output, E (e - M x)^T G (e - M x) is the harm to second
order, as in K-FAC (Martens and Grosse 2015, arXiv 1503.05671). With G = L L^T it is the problem
above for L^T e.

Moments are centred where a bias takes the means.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Extra directions and power iterations (Halko et al., arXiv 0909.4061), as of torch's svd_lowrank.
OVERSAMPLING, POWER_ITERATIONS = 8, 4
#: Added to the diagonal of R~ before it is inverted, as a part of its mean.
RIDGE = 0.03


class Term(NamedTuple):
    """A low-rank term M = left right."""

    left: Tensor  #: (out, k)
    right: Tensor  #: (k, in)
    gains: Tensor  #: (k,), by how much each direction lessens the error, in falling order


def output_svd(lost: Tensor, second: Tensor, rank: int) -> Term:
    """The term of rank k that leaves the least E || (D - M) x ||^2.

    Args:
        lost: D = W - Q, (out, in), float32 or float64; batches in front of it are allowed.
        second: E[x x^T], (in, in), or the covariance where a bias takes the mean.
        rank: k, 1 to the shorter side.
    """
    kept, gains = _leading(lost @ second, lost, rank)
    return Term(kept, kept.mT @ lost, gains)


def reduced_rank_regression(
    cross: Tensor, factor: Tensor, rank: int, metric: Tensor | None = None
) -> Term:
    """The M of rank k with the least E || L^T (e - M x) ||^2.

    Args:
        cross: C = E[e x^T], (out, in), float32 or float64.
        factor: of R = E[x x^T], from :func:`ridge_factor`.
        rank: k, 1 to the shorter side.
        metric: L, (out, out), lower triangular, from :func:`ridge_factor` of G; by default all
            errors count alike.
    """
    if metric is not None:
        cross = metric.mT @ cross
    solution = torch.cholesky_solve(cross.mT, factor).mT
    kept, gains = _leading(cross, solution, rank)
    left = kept
    if metric is not None:
        left = torch.linalg.solve_triangular(metric.mT, kept, upper=True)
    return Term(left, kept.mT @ solution, gains)


def ridge_factor(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """Cholesky's factor of a second moment, (in, in), whose diagonal has grown by a part of its
    mean: layers with the same inputs share it."""
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)
    added = (ridge * mean).clamp(min=torch.finfo(second.dtype).tiny ** 0.5)
    identity = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    return torch.linalg.cholesky(second + added[..., None, None] * identity)


def _leading(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The k leading eigenvectors of L R^T, (out, out), symmetric, and their eigenvalues.

    (out, k), orthonormal, and (k,), falling.

    By subspace iteration, so that the matrix itself is never made.
    """
    rows = left.shape[-2]
    width = min(rank + OVERSAMPLING, rows)
    generator = torch.Generator().manual_seed(0)  # torch's own state is left as it is
    basis = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(left)
    basis = basis.expand(*left.shape[:-2], rows, width)
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(left @ (right.mT @ basis)).Q
    small = (basis.mT @ left) @ (right.mT @ basis)
    values, turns = torch.linalg.eigh((small + small.mT) / 2)  # ascending
    return basis @ turns[..., -rank:].flip(-1), values[..., -rank:].flip(-1)
