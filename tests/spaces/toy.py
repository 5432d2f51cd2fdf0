"""A format of one's own in one file: plain rounding, in blocks that must divide a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coalora_lib.spaces import ConfigurationSpace, register_space


@dataclass(frozen=True)
class Rounded:
    """Whole steps, and the size of a step for each block."""

    steps: torch.Tensor
    sizes: torch.Tensor
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self):
        return self.steps.nbytes + self.sizes.nbytes

    def tensors(self):
        yield from (("steps", self.steps), ("sizes", self.sizes))

    def dequantize(self, dtype=None):
        return (self.steps * self.sizes).reshape(self.shape).to(dtype or self.dtype)


class RoundingSpace(ConfigurationSpace):
    """Three widths of a step, blocks of 12 or 16 weights of a row: six choices."""

    name = "rounding"
    fields = {"bits": (3, 4, 6), "block": (12, 16)}  # noqa: RUF012

    def allowed(self, choice, shape):
        return shape[-1] % choice.block == 0

    def nbytes(self, choice, shape):
        rows, columns = shape
        return rows * columns + 2 * rows * columns // choice.block

    def bits_per_parameter(self, choice, shape=None):
        return choice.bits + 16 / choice.block

    def quantize(self, weight, choice):
        blocks = weight.detach().float().reshape(-1, choice.block)
        sizes = (blocks.abs().amax(1, keepdim=True) / (2 ** (choice.bits - 1) - 1)).clamp(min=1e-4)
        sizes = sizes.half()
        return Rounded((blocks / sizes).round().to(torch.int8), sizes, weight.shape, weight.dtype)


ROUNDING = register_space(RoundingSpace())
