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

**Many layers.** The matrices are so small that a GPU mostly waits for the next call. So a batch of
layers takes as many calls as one layer, and bases are made orthonormal by Cholesky's factor of
their Gram matrix: one call for a batch, where reflections (QR) are several for each matrix.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

#: Extra directions and power iterations (Halko et al., arXiv 0909.4061), as of torch's svd_lowrank.
OVERSAMPLING, POWER_ITERATIONS = 8, 4
#: Added to the diagonal of R~ before it is inverted, as a part of its mean.
RIDGE = 0.03
#: On the diagonal of a Gram matrix of zeros; float32 has its root.
SMALLEST = torch.finfo(torch.float32).tiny ** 2


class Term(NamedTuple):
    """A low-rank term M = left right."""

    left: Tensor  #: (out, k)
    right: Tensor  #: (k, in)
    gains: Tensor  #: (k,), by how much each direction lessens the error, in falling order


def output_svd(lost: Tensor, second: Tensor, rank: int, mean: Tensor | None = None) -> Term:
    """The term of rank k that leaves the least E || (D - M) x ||^2.

    Args:
        lost: D = W - Q, (out, in), float32 or float64; batches in front of it are allowed.
        second: E[x x^T], (in, in), in batches as D. Where the last of the batch's dimensions is 1,
            layers share it; it is not copied for each.
        rank: k, 1 to the shorter side.
        mean: E[x], (in,), in batches as D, where a bias takes it: the covariance counts.
    """

    def times(basis: Tensor) -> Tensor:  # D R D^T, or with the covariance
        entered = lost.mT @ basis
        seen = _shared_product(second, entered)
        if mean is not None:
            along = mean[..., None, :] @ entered
            seen = torch.addcmul(seen, mean[..., :, None], along, value=-1)
        return lost @ seen

    kept, gains = _leading(times, lost, rank)
    return Term(kept, kept.mT @ lost, gains)


def _shared_product(second: Tensor, parts: Tensor) -> Tensor:
    """(..., 1, n, n) times (..., s, n, k) as one product with (..., n, s k); others as they are."""
    if second.ndim > 2 and second.shape[-3] == 1:
        return torch.einsum("...ij,...sjk->...sik", second.squeeze(-3), parts)
    return second @ parts


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
    kept, gains = _leading(lambda basis: cross @ (solution.mT @ basis), cross, rank)
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


def _leading(times: Callable[[Tensor], Tensor], like: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The k leading eigenvectors of a symmetric matrix, (out, out), and their eigenvalues.

    (out, k), orthonormal, and (k,), falling. By subspace iteration: the matrix itself is never
    made.

    Args:
        times: the matrix times (out, n).
        like: (out, anything), of the same batch, dtype and device.
    """
    rows = like.shape[-2]
    start = _start(rows, min(rank + OVERSAMPLING, rows)).to(like)
    basis = start.expand(*like.shape[:-2], *start.shape)
    for _ in range(POWER_ITERATIONS - 1):
        basis = _cholesky_qr(times(basis))
    basis = _cholesky_qr(_cholesky_qr(times(basis)))  # the second time to the last digit
    small = basis.mT @ times(basis)
    values, turns = torch.linalg.eigh((small + small.mT) / 2)  # ascending
    return basis @ turns[..., -rank:].flip(-1), values[..., -rank:].flip(-1)


@lru_cache(maxsize=16)
def _start(rows: int, width: int) -> Tensor:
    """The same random numbers at every call, (rows, width) float64; not to be written to."""
    generator = torch.Generator().manual_seed(0)  # torch's own state is left as it is
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def _cholesky_qr(basis: Tensor) -> Tensor:
    """A basis of the span of (rows, n), orthonormal but for rounding: Q = Y R^-1, Y^T Y = R^T R.

    A basis as bad as its dtype can tell may be given, since the Gram matrix is float64. Its
    diagonal grows by more than the rounding of the product and of Cholesky's steps can take
    (Fukaya et al. 2020, arXiv 1809.11085), so these succeed for any finite numbers, and nothing
    waits for the device to say so. Directions too small to be told from rounding come out shorter
    than 1, down to 0.
    """
    wide = basis.double()
    gram = wide.mT @ wide
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    rounding = sum(basis.shape[-2:]) * torch.finfo(torch.float64).eps
    added = (rounding * diagonal.sum(-1, keepdim=True)).clamp(min=SMALLEST)
    diagonal.add_(added)
    factor = torch.linalg.cholesky_ex(gram, upper=True).L.to(basis)
    return torch.linalg.solve_triangular(factor, basis, upper=True, left=False)
