"""Which parts of a model are quantized and adapted, and which are not."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from coalora_lib.adapter.heads import is_inside, plain_name, warn_of_random_parts

#: A warning is given where less than this share of the weights in blocks is quantized.
MOSTLY = 0.5


@dataclass(frozen=True)
class Report:
    """Numbers of a model's parameters; without LoRA's and the adjuster's."""

    quantized: int  #: in the adapted layers
    trained_in_full: int  #: in heads
    left: Mapping[str, int]  #: by name, what stays as it is, the largest first

    @classmethod
    def of(
        cls, base: nn.Module, weights: Mapping[str, Tensor], heads: Sequence[str] | None
    ) -> Self:
        """Of a transformers model, adapted or not, with the adapted layers' weights by name."""
        left, in_heads = {}, 0
        for name, parameter in base.named_parameters():
            plain = plain_name(name)
            if ".lora_" in plain or plain.removesuffix(".weight") in weights:
                continue
            if not is_inside(plain, heads or ()):
                left[plain] = parameter.numel()
            elif ".modules_to_save." not in plain:
                in_heads += parameter.numel()
        ordered = dict(sorted(left.items(), key=lambda item: -item[1]))
        return cls(sum(weight.numel() for weight in weights.values()), in_heads, ordered)

    @property
    def share(self) -> float:
        """The quantized part of all parameters, 0 to 1."""
        left = sum(self.left.values())
        return self.quantized / max(1, self.quantized + self.trained_in_full + left)

    def __str__(self) -> str:
        left = sum(self.left.values())
        largest = ", ".join(f"{name} {count:,}" for name, count in list(self.left.items())[:3])
        return (
            f"quantized and adapted  {self.quantized:>14,}  ({100 * self.share:.1f} %)\n"
            f"trained in full        {self.trained_in_full:>14,}\n"
            f"left as they are       {left:>14,}  {largest}"
        )


def warn_of_what_is_left(base: PreTrainedModel, names: Sequence[str], heads: Sequence[str]) -> None:
    """Warn of parts that stay random, and where most weights of the blocks cannot be quantized.

    Such as the experts of a mixture that are stored as one tensor.
    """
    warn_of_random_parts(base, heads)
    report = Report.of(base, {name: base.get_submodule(name).weight for name in names}, heads)
    blocks = {n: c for n, c in report.left.items() if any(p.isdigit() for p in n.split("."))}
    share = report.quantized / (report.quantized + sum(blocks.values()))
    if share < MOSTLY:
        warnings.warn(
            f"only {100 * share:.0f} % of the weights in blocks are in layers that are quantized; "
            f"the others, such as {next(iter(blocks))}, stay as they are, and bits do not count "
            "them",
            stacklevel=4,
        )
