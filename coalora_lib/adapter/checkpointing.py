"""Gradient checkpointing over layers that follow a configuration.

Checkpointing runs a block again in the backward. By then its layers may compute with the weights of
another configuration, and its LoRA with other factors. So what they computed with is kept, and put
back while the block is recomputed. The factors are arguments of what is checkpointed: gradients
leave the block through them, and reach the hypernetwork once, where all blocks' have come together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from coalora_lib.adapter.linear import LoraFactor
from coalora_lib.adapter.quantized import Current, QuantizedLinear


def checkpointable_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers' gradient checkpointing can be switched on for."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def recompute_as_before(modules: Iterable[nn.Module]) -> None:
    """Have each of them for which checkpointing is on recompute as it was in the forward.

    Called before every forward, since there are many ways to switch checkpointing on.
    """
    for module in modules:
        if not module.gradient_checkpointing:
            continue
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None and not isinstance(function, Checkpoint):
            module._gradient_checkpointing_func = Checkpoint(module, function)  # noqa: SLF001


class Checkpoint:
    """Stands for the function that checkpoints a block.

    Args:
        block: the module whose ``_gradient_checkpointing_func`` it is.
        function: ``torch.utils.checkpoint.checkpoint``, its options bound.
    """

    def __init__(self, block: nn.Module, function: Callable[..., Any]) -> None:
        self.function = function
        inside = list(block.modules())
        self._quantized = [each for each in inside if isinstance(each, QuantizedLinear)]
        self._factors = [each for each in inside if isinstance(each, LoraFactor)]
        self._tuners = [each for each in inside if isinstance(each, BaseTunerLayer)]

    def __call__(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What ``run`` returns for the arguments, checkpointed."""
        weights = [layer.snapshot() for layer in self._quantized]
        versions = [kept.weight._version for kept in weights]  # noqa: SLF001
        disabled = [tuner.disable_adapters for tuner in self._tuners]
        factors = self._current_factors()

        def as_before(*given: Any) -> Any:
            if versions != [kept.weight._version for kept in weights]:  # noqa: SLF001
                raise RuntimeError(
                    "a quantized weight that this backward needs was overwritten by a switch to "
                    "another configuration: under static_memory() a backward comes before the "
                    "next set_configuration"
                )
            with self._computing_with(weights, given[len(arguments) :], disabled):
                return run(*given[: len(arguments)])

        return self.function(as_before, *arguments, *factors, **options)

    def _current_factors(self) -> list[Tensor | None]:
        """Weight and shift of every factor, one after the other."""
        return [part for each in self._factors for part in (each.current, each.shift)]

    @contextmanager
    def _computing_with(
        self,
        weights: Sequence[Current],
        factors: Sequence[Tensor | None],
        disabled: Sequence[bool],
    ) -> Iterator[None]:
        now = [layer.swap(kept) for layer, kept in zip(self._quantized, weights, strict=True)]
        now_factors = self._current_factors()
        now_disabled = [tuner.disable_adapters for tuner in self._tuners]
        self._put(factors, disabled)
        try:
            yield
        finally:
            for layer, kept in zip(self._quantized, now, strict=True):
                layer.swap(kept)
            self._put(now_factors, now_disabled)

    def _put(self, factors: Sequence[Tensor | None], disabled: Sequence[bool]) -> None:
        for factor, weight, shift in zip(self._factors, factors[::2], factors[1::2], strict=True):
            assert weight is not None
            factor.take(weight, shift)
        for tuner, off in zip(self._tuners, disabled, strict=True):
            # Not PEFT's enable_adapters, which also sets what is trained.
            tuner._disable_adapters = off  # noqa: SLF001
