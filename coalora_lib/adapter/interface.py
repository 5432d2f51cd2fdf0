"""What users of transformers and PEFT, and their tools, ask of any model."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from coalora_lib.adapter.checkpointing import checkpointable_modules
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.tied import keep_once
from coalora_lib.spaces import parameters

#: What transformers' Trainer, pipelines and ``generate`` read of a model beside what is defined
#: below; of the transformers model inside, as far as that has it.
READ_OF_A_MODEL = frozenset(
    {
        "accepts_loss_kwargs",
        "can_generate",
        "generation_config",
        "get_output_embeddings",
        "loss_type",
        "main_input_name",
        "name_or_path",
        "supports_gradient_checkpointing",
        "warnings_issued",
    }
)


class TransformersInterface(nn.Module):
    """The part of a transformers model's interface that does not depend on configurations.

    Attributes:
        model: the PEFT model.
        layers: its adapted layers.
        checkpointable: its modules that gradient checkpointing can be switched on for.
    """

    model: PeftModel
    layers: AdaptedLayers
    checkpointable: list[nn.Module]

    def get_base_model(self) -> PreTrainedModel:
        """The transformers model, with the LoRA layers in it."""
        return self.model.get_base_model()

    @property
    def config(self):
        """The transformers model's configuration (sizes, labels, special tokens)."""
        return self.get_base_model().config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.get_base_model().device

    @property
    def dtype(self) -> torch.dtype:
        """The transformers model's; the trained parameters of a 16-bit model are float32."""
        return self.get_base_model().dtype

    def __getattr__(self, name: str) -> Any:
        if name in READ_OF_A_MODEL and "model" in self._modules:
            return getattr(self.get_base_model(), name)
        return super().__getattr__(name)

    def forward(
        self, *arguments: Any, labels: Any = None, **batch: Any
    ) -> ModelOutput | tuple[Tensor, ...]:
        """The transformers model's output under the current configuration.

        Arguments are those of the transformers model, in its order; ``inspect.signature`` of a
        model's ``forward`` says which.
        """
        # `labels` is named for transformers' find_labels, which looks at the class.
        if labels is not None:
            batch["labels"] = labels
        return self.get_base_model()(*arguments, **batch)

    def join_transformers(self) -> None:
        """Take on what transformers' tools rely on, once the model is whole."""
        self._take_signature()
        keep_once(self)
        self.checkpointable = checkpointable_modules(self.get_base_model())

    def _take_signature(self) -> None:
        """Give ``forward`` the transformers model's signature, by which a Trainer picks columns."""
        # A bound method, so that a copy of the model gets one of its own.
        self.__dict__["forward"] = MethodType(_forward_like(self.get_base_model()), self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickle names a bound method, and so has brought back the class's own.
        if getattr(self.forward, "__func__", None) is TransformersInterface.forward:
            self._take_signature()

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """transformers' ``generate`` under the current configuration."""
        return self.get_base_model().generate(*arguments, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The transformers model's."""
        return self.get_base_model().get_input_embeddings()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, the adapted layers' frozen weights and the adapter included."""
        left_out = {
            f"{name}.weight"
            for name, module in self.named_modules()
            if exclude_embeddings and isinstance(module, nn.Embedding)
        }
        total = sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if name not in left_out and (parameter.requires_grad or not only_trainable)
        )
        if only_trainable:
            return total
        # They follow the configuration, and so are no parameters of the module.
        return total + sum(parameters(shape) for shape in self.layers.shapes.values())

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, in PEFT's words."""
        trained, total = self.num_parameters(only_trainable=True), self.num_parameters()
        print(
            f"trainable params: {trained:,d} || all params: {total:,d} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """While it lasts, LoRA is off, and parts trained in full are as they were before.

        What is left are the quantized weights of the current configuration, with the corrections
        of the mean output and the frozen low-rank terms where the model has them.
        """
        before = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            with self.model.disable_adapter():
                yield
        finally:
            for parameter, needed in before:  # PEFT would train all that it switches on again
                parameter.requires_grad_(needed)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the blocks in the backward pass, instead of keeping their activations.

        Each is recomputed as it was in its own forward, whatever configuration is set by then.

        Args:
            gradient_checkpointing_kwargs: for ``torch.utils.checkpoint.checkpoint``, such as
                {"use_reentrant": True}; not reentrant by default.
            options: transformers' ``every_n_layers`` and ``offload``.
        """
        self._checkpointing("enable", gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations of the blocks for the backward pass again."""
        self._checkpointing("disable")

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """transformers' newer name of :meth:`gradient_checkpointing_enable`."""
        self._checkpointing("enable", activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """transformers' newer name of :meth:`gradient_checkpointing_disable`."""
        self._checkpointing("disable")

    def _checkpointing(self, what: str, *arguments: Any, **options: Any) -> None:
        base = self.get_base_model()
        newer = getattr(base, f"activation_checkpointing_{what}", None)
        (newer or getattr(base, f"gradient_checkpointing_{what}"))(*arguments, **options)


def _forward_like(model: nn.Module) -> Callable[..., Any]:
    """A function that passes a call on, with the signature of a model's forward."""

    def forward(self: TransformersInterface, *arguments: Any, **batch: Any) -> Any:
        return self.get_base_model()(*arguments, **batch)

    signature = inspect.signature(model.forward)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    called = signature.replace(parameters=[first, *signature.parameters.values()])
    forward.__signature__ = called  # type: ignore[attr-defined]
    return forward
