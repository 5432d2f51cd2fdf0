"""Low rank plus quantized: W ~ Q + L1 L2 (LQ-LoRA, arXiv 2311.12023, sections 3.1 and 3.3).

Alternate between the two parts, each the best answer to what the other leaves over:

    L1 L2 = SVD_r(W - Q)        Q = quantize(W - L1 L2)

The error may rise; the iterate with the smallest is returned. With importance F the error is the
two-sided form || D_row (.) D_col ||_F, D_row and D_col the roots of F's row and column means, for
which the best L1 L2 is again a truncated SVD.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coalora_lib.spaces import Choice, ConfigurationSpace, QuantizedWeight, get_space

#: Extra directions and power iterations of the randomized SVD (Halko et al., arXiv 0909.4061).
OVERSAMPLING, POWER_ITERATIONS = 10, 4


@dataclass(frozen=True)
class LowRankPlusQuantized:
    """W ~ Q + L1 L2, the parts of the smallest error."""

    l1: Tensor  #: (out, r), in PEFT ``lora_B``
    l2: Tensor  #: (r, in), in PEFT ``lora_A``
    quantized: QuantizedWeight  #: Q
    errors: tuple[float, ...]  #: (weighted) Frobenius error after each iteration

    @property
    def error(self) -> float:
        """The error of the parts returned."""
        return min(self.errors)

    def dequantize(self) -> Tensor:
        """Q + L1 L2, (out, in)."""
        return self.quantized.dequantize(self.l1.dtype) + self.l1 @ self.l2


def lowrank_plus_quantized(
    weight: Tensor,
    choice: Choice,
    rank: int,
    space: str | ConfigurationSpace = "nf",
    importance: Tensor | None = None,
    svd: str = "exact",
    max_iterations: int = 20,
    seed: int = 0,
) -> LowRankPlusQuantized:
    """Split an (out, in) weight into a quantized and a low-rank part.

    Iterations end when the error grows, or does not change.

    Args:
        choice: how Q is quantized, of the space.
        rank: r of the low-rank part, 1 to min(out, in).
        importance: (out, in), positive; see :func:`coalora_lib.training.fisher_importance`.
        svd: "exact", or "randomized" from the seed, faster for a small rank of a large matrix.

    Raises:
        ValueError: not a matrix, or rank, svd, max_iterations or importance is out of range.
        TypeError, ValueError: as :func:`~coalora_lib.quantization.quantize`.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank={rank} of a tensor of shape {tuple(weight.shape)}; allowed: a matrix, and 1 to "
            "its shorter side"
        )
    if svd not in ("exact", "randomized"):
        raise ValueError(f"svd={svd!r} is not known; allowed: exact, randomized")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}; at least 1 is needed")
    space = get_space(space)
    exact = weight.detach().float()
    rows, columns = _two_sided(importance, exact)
    errors: list[float] = []
    left_over, best = exact, None
    for _ in range(max_iterations):
        factors = truncated_svd(rows * left_over * columns, rank, svd, seed)
        new_l1, new_l2 = factors[0] / rows, factors[1] / columns
        new_quantized = space.quantize(exact - new_l1 @ new_l2, choice)
        left_over = exact - new_quantized.dequantize()
        error = float(torch.linalg.norm(rows * (left_over - new_l1 @ new_l2) * columns))
        improved = not errors or error < min(errors)
        errors.append(error)
        if not improved:
            break
        best = new_l1.to(weight.dtype), new_l2.to(weight.dtype), new_quantized
    assert best is not None  # the first iteration improves on nothing
    return LowRankPlusQuantized(*best, tuple(errors))


def _two_sided(importance: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """D_row (out, 1) and D_col (1, in), scaled to have a mean square of one."""
    if importance is None:
        return weight.new_ones(len(weight), 1), weight.new_ones(1, weight.shape[1])
    if importance.shape != weight.shape:
        raise ValueError(f"importance is {tuple(importance.shape)}, not {tuple(weight.shape)}")
    importance = importance.to(weight)
    sides = []
    for dim in (1, 0):
        side = importance.mean(dim, keepdim=True)
        if not (torch.isfinite(side) & (side > 0)).all():
            raise ValueError("importance needs a positive, finite mean in every row and column")
        sides.append((side / side.mean()).sqrt())
    return sides[0], sides[1]


def truncated_svd(
    matrix: Tensor, rank: int, svd: str = "randomized", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation, (rows, r) and (r, columns); singular values' roots in both.

    The matrix is float32 or float64, with batches in front or not; ``svd`` is "exact" or
    "randomized", from the seed: torch's random state is left as it is, and a batch is treated as
    its members one by one.
    """
    if svd == "exact":
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        width = min(rank + OVERSAMPLING, *matrix.shape[-2:])
        with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(matrix, width, POWER_ITERATIONS)
        vh = v.mT
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root[..., None, :], root[..., None] * vh[..., :rank, :]
