"""One configuration of a model, for where nothing of this library is: PEFT, GGUF, transformers."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.export import write_adapter
from coalora_lib.adapter.frozen import frozen
from coalora_lib.adapter.gguf import FILES, MARKER, checked_file, size_limit, write_gguf
from coalora_lib.adapter.interface import TransformersInterface
from coalora_lib.adapter.merging import merged
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.allocation import Limit
from coalora_lib.files import replaceable
from coalora_lib.gguf import Options
from coalora_lib.spaces import Choice


class Exports(TransformersInterface):
    """The part of a model that writes one of its configurations for others."""

    @property
    @abstractmethod
    def configuration(self) -> list[Choice] | None:
        """The current configuration."""

    @abstractmethod
    def resolve(self, configuration: ConfigurationLike) -> list[Choice]:
        """The choice of every layer."""

    @abstractmethod
    def adapted_factors(self, configuration: Sequence[Choice]) -> list[Factors]:
        """The LoRA factors of every layer under a configuration."""

    @torch.no_grad()
    def export_peft_adapter(
        self,
        folder: str | Path,
        configuration: ConfigurationLike | None = None,
        weights: str | None = None,
    ) -> Path:
        """Write the adapter for one configuration as plain PEFT; the model is left as it is.

        ``PeftModel.from_pretrained(base, folder)`` reads it onto the base quantized alike.

        Args:
            folder: new, empty, or an earlier export, which is replaced.
            configuration: as for :meth:`set_configuration`; the current one by default.
            weights: "packed" adds quantized.safetensors, which
                :func:`coalora_lib.quantization.load_quantized` reads; "base_model" adds a folder
                of that name with the quantized weights restored, which transformers reads.

        Raises:
            ValueError: no configuration is given or set, or it or ``weights`` does not fit: if
                codes were chosen for the configuration, the weights must be written too.
            FileExistsError: the folder holds something else.
        """
        resolved, factors = self._resolved(configuration)
        return write_adapter(self.model, self.layers, factors, resolved, folder, weights)

    @torch.no_grad()
    def export_gguf(
        self,
        folder: str | Path,
        configuration: ConfigurationLike | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> Path:
        """Write one configuration as llama.cpp runs it; the model is left as it is.

        Its space is "gguf". The folder then holds base.gguf, adapter.gguf, and a README with the
        commands that run them.

        Args:
            folder: new, empty, or an earlier export, which is replaced.
            configuration: as for :meth:`set_configuration`; the current one by default.
            tokenizer: the model's; by default the one under the model's name.
            options: ``embedding``, the type of the token embedding and the output layer, "F16" by
                default; ``pooling``, how an encoder makes one vector of a text, "mean" or "cls".

        Raises:
            ValueError: no configuration is given or set, or it does not fit; the space is another;
                or llama.cpp has no such model or tokenizer, or an option is not known.
            FileExistsError: the folder holds something else.
            ModuleNotFoundError: gguf or libgguf is not installed.
        """
        self.check_gguf(folder, tokenizer, **options)
        resolved, factors = self._resolved(configuration)
        chosen = Options(**options)
        return write_gguf(self.model, self.layers, factors, resolved, folder, tokenizer, chosen)

    def check_gguf(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> None:
        """Refuse what :meth:`export_gguf` would, before anything is computed; with its errors."""
        checked_file(self.model, self.layers, tokenizer, Options(**options))
        replaceable(folder, MARKER, FILES)

    def gguf_size_limit(
        self, most: int, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
    ) -> Limit:
        """A limit on the bytes of base.gguf as a whole, for ``Constraints(limits=[limit])``.

        Arguments and errors are those of :meth:`export_gguf`.
        """
        file = checked_file(self.model, self.layers, tokenizer, Options(**options))
        return size_limit(file, self.layers, most)

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, configuration: ConfigurationLike | None = None) -> PreTrainedModel:
        """A plain transformers model with its own memory and the adapter merged into its weights.

        Its weights are de-quantized: outputs are those of one configuration, the size is not. It
        is saved and loaded by transformers alone; this model is left as it is.

        Args:
            configuration: as for :meth:`set_configuration`; the current one by default.

        Raises:
            ValueError: no configuration is given or set, or it does not fit; or a layer needs a
                bias, for a correction or a shift, and models of this class cannot have one there.
        """
        resolved, factors = self._resolved(configuration)
        return merged(self.get_base_model(), self.layers, factors, resolved, self)

    @torch.inference_mode(False)
    @torch.no_grad()
    def freeze(self, configuration: ConfigurationLike | None = None) -> PreTrainedModel:
        """A plain model with its own memory that stays small: packed weights, and LoRA.

        It computes what this model does under the configuration, and takes what the packed weights,
        the adapter and the parts that are not adapted take. A layer's weight is restored while it
        computes. :func:`~coalora_lib.adapter.save_frozen` writes it, and
        :func:`~coalora_lib.adapter.load_frozen` reads it; this model is left as it is.

        Args:
            configuration: as for :meth:`set_configuration`; the current one by default.

        Raises:
            ValueError: no configuration is given or set, or it does not fit.
            TypeError: the space's quantized weights are no dataclasses.
        """
        resolved, factors = self._resolved(configuration)
        return frozen(self.get_base_model(), self.layers, factors, resolved, self)

    def _resolved(
        self, configuration: ConfigurationLike | None
    ) -> tuple[list[Choice], list[Factors]]:
        """The choice and the LoRA factors of every layer; of the current one by default."""
        configuration = self.configuration if configuration is None else configuration
        if configuration is None:
            raise ValueError("no configuration is set or given, so nothing can be exported")
        resolved = self.resolve(configuration)
        return resolved, self.adapted_factors(resolved)
