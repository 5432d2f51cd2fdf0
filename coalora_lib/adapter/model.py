"""CoaLora: a transformers model whose LoRA follows the quantization configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from coalora_lib.adapter import saving
from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.attaching import (
    check_means,
    check_rank,
    new_adjuster,
    refuse_inner_save,
)
from coalora_lib.adapter.export import fixed_layers, packed_tensors, write_adapter
from coalora_lib.adapter.hypernetwork import Adjustment, HyperNetwork
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.lora import attach_lora, check_base
from coalora_lib.adapter.quantized import WeightCache
from coalora_lib.adapter.resolving import ConfigurationLike, ConfigurationResolver
from coalora_lib.adapter.settings import AdapterSettings, Start
from coalora_lib.spaces import Choice, ConfigurationSpace, get_space, parameters

#: Bytes that a model's weight cache may hold, unless told otherwise.
CACHE_LIMIT = 4 * 2**30
#: Mean bits that the start "svd" takes its residual at: one of the paper's figure 1, 2.5 to 4.
REFERENCE_BUDGET = 3.0


class CoaLora(nn.Module):
    """Standard PEFT LoRA layers, quantized weights behind them, and an adjuster between.

    For the current configuration C each adapted layer i computes

        y = Q(W_i; c_i) x + bias_i + (alpha / r) L1_i (I + U_theta(Q_i)) L2_i x

    with Q(W; c) the quantized weight, L1 and L2 PEFT's ``lora_B`` and ``lora_A``. Pre-trained
    biases are kept. Build it with :meth:`attach`, or :meth:`from_pretrained`.

    Attributes:
        model: the PEFT model.
        adjuster: what makes U, or takes its place.
        settings: what it was attached with.
        space: of its configurations.
        layer_names: the adapted linear layers, in the model's order.
        shapes, sizes: shape and number of weights of each of them.
        training_set: the configurations it was last trained on; kept when it is saved.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        settings: AdapterSettings,
        errors: Tensor | None = None,
        cache_bytes: int = CACHE_LIMIT,
        mean_inputs: Mapping[str, Tensor] | None = None,
        start_configuration: ConfigurationLike | None = None,
    ) -> None:
        super().__init__()
        # What may be refused is, before the base model is touched.
        self.layer_names = check_base(base_model)
        self.settings = settings
        self.space = get_space(settings.space)
        linears = [base_model.get_submodule(name) for name in self.layer_names]
        weights = {n: m.weight.detach() for n, m in zip(self.layer_names, linears, strict=True)}
        estimate = settings.errors == "estimated"
        self._resolver = ConfigurationResolver(weights, self.space, errors, estimate)
        self.shapes = self._resolver.shapes
        self.sizes = [parameters(shape) for shape in self.shapes]
        check_means(settings, self.layer_names, linears, mean_inputs)
        check_rank(settings, self.layer_names, self.shapes)
        reference = None
        if settings.start == "svd" and start_configuration is not None:
            reference = self._resolver(start_configuration, weights)

        self.model = attach_lora(base_model, settings.rank, settings.alpha)
        self.model.save_pretrained = MethodType(refuse_inner_save, self.model)
        self.layers = AdaptedLayers(
            base_model,
            self.layer_names,
            self.space,
            WeightCache(cache_bytes),
            settings.frozen_rank,
            mean_inputs,
        )
        self.training_set: list[list[Choice]] = []
        self._indices: Tensor | None = None
        self.adjuster = new_adjuster(settings, self.space, self.layers, lambda: self.errors)
        if reference is not None:
            self.layers.start_from_residual(reference, settings.rank)
        #: What is saved, whatever is done to ``requires_grad`` later.
        self._own_parameters = frozenset(saving.trained_parameters(self))
        # On the transformers model, so that every way in passes it: forward, PEFT, generate.
        base_model.register_forward_pre_hook(self.adapt)

    @classmethod
    def attach(
        cls,
        base_model: PreTrainedModel,
        rank: int = 16,
        alpha: float = 16,
        start: Start = "zero",
        *,
        space: str | ConfigurationSpace = "nf",
        errors: Literal["estimated", "exact"] | Tensor = "estimated",
        start_configuration: ConfigurationLike = REFERENCE_BUDGET,
        cache_bytes: int = CACHE_LIMIT,
        mean_inputs: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> CoaLora:
        """Put LoRA on every linear layer inside the model's blocks.

        Args:
            base_model: a transformers model; it is taken over and changed, unless it is refused.
            rank, alpha, start: see :class:`~coalora_lib.adapter.AdapterSettings`.
            space: what layers may be quantized to; the name of a registered space, or that space.
            errors: how the error table is measured when a budget is first asked for, "estimated"
                from a sample or "exact" (see :func:`~coalora_lib.allocation.error_table`); or the
                model's (layers, choices) table where the caller has it.
            start_configuration: whose residual the start "svd" begins from.
            cache_bytes: what the weights of other configurations may take in memory.
            mean_inputs: E[x] of each layer, (in,), by name, for ``bias_correction=True``; of the
                unquantized model on the task's data.
            options: the other fields of :class:`~coalora_lib.adapter.AdapterSettings`.

        Raises:
            ValueError: the model has no linear layer in a numbered block, is quantized or adapted
                already, or a setting is not known or out of range.
        """
        table = errors if isinstance(errors, Tensor) else None
        if table is None and errors not in ("estimated", "exact"):
            raise ValueError(f"errors={errors!r}; allowed: 'estimated', 'exact' or the table")
        name = get_space(space).name
        source = errors if table is None else "given"
        settings = AdapterSettings(
            rank=rank, alpha=alpha, start=start, space=name, errors=source, **options
        )
        return cls(base_model, settings, table, cache_bytes, mean_inputs, start_configuration)

    @property
    def config(self):
        """The transformers model's configuration (sizes, labels, special tokens)."""
        return self.model.get_base_model().config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_base_model().device

    @property
    def configuration(self) -> list[Choice] | None:
        """The current configuration, or None while the weights are unquantized."""
        return None if self.layers.configuration is None else list(self.layers.configuration)

    @property
    def bits(self) -> float | None:
        """Mean bits per parameter of the current configuration, scales included."""
        current = self.layers.configuration
        return None if current is None else self.space.mean_bits(current, self.shapes)

    @property
    def errors(self) -> Tensor:
        """The (layers, choices) table of squared quantization errors, measured at first use.

        ``settings.errors`` says whether it is estimated, exact or given.
        """
        return self._resolver.measured_errors(self.pretrained_weights)

    @property
    def pretrained_weights(self) -> dict[str, Tensor]:
        """The unquantized weight of each adapted layer, by name; not to be written to."""
        return self.layers.pretrained

    @property
    def mean_inputs(self) -> dict[str, Tensor]:
        """E[x] of each layer by name; empty without bias correction."""
        return self.layers.mean_inputs

    def resolve(self, configuration: ConfigurationLike) -> list[Choice]:
        """The choice of every layer that :meth:`set_configuration` would set.

        The first budget measures the error table, see :attr:`errors`.

        Raises:
            ValueError, TypeError: as :meth:`set_configuration`.
        """
        return self._resolver(configuration, self.pretrained_weights)

    @torch.inference_mode(False)
    def set_configuration(self, configuration: ConfigurationLike | None) -> None:
        """Switch to a configuration: quantized weights move in, the adapter follows.

        Weights and corrections are there when this returns. The adjusted factors are made at the
        next forward, by :meth:`adapt`, since gradients flow through them.

        Args:
            configuration: one choice for each of :attr:`layer_names`, in that order or by name; or
                a budget in mean bits per parameter; or
                :class:`~coalora_lib.allocation.Constraints` (allowed bit widths, bytes, ...), for
                which the least-error configuration is allocated. None goes back to the pre-trained
                weights and plain LoRA.

        Raises:
            ValueError: the number or the names of the layers differ, a layer may not take its
                choice, or the budget or the constraints are not feasible; the model is left as it
                was.
            TypeError: what is given is no configuration.
        """
        if configuration is None:
            self.layers.switch(None)
            self.layers.use(self.layers.factors())
            self._indices = None
            return
        resolved = self.resolve(configuration)
        self.layers.switch(resolved)
        indices = self.space.to_indices(resolved)
        if self._indices is None:
            self._indices = indices.to(self.device)
        else:  # where it was, since captured graphs read it there
            self._indices = self._indices.to(self.device).copy_(indices)

    def adapt(self, *_: Any) -> None:
        """Give every LoRA layer the factors for the current configuration, before a forward."""
        if self._indices is None or not self.adjuster.follows:
            return
        self.layers.use(self.adjuster.adapted(self._indices, self.layers.factors()))

    def adjustments(self, configuration: Sequence[Choice]) -> Adjustment:
        """U, (layers, r, r), and v, (layers, r), of every layer under a configuration.

        Raises:
            ValueError: the model has no hypernetwork.
        """
        if not isinstance(self.adjuster, HyperNetwork):
            raise ValueError(
                f"attached with adjuster={self.settings.adjuster!r}: there are no adjustments"
            )
        return self.adjuster(self.space.to_indices(configuration).to(self.device))

    def adapted_factors(self, configuration: Sequence[Choice]) -> list[Factors]:
        """The LoRA factors of every layer under a configuration."""
        indices = self.space.to_indices(configuration).to(self.device)
        return self.adjuster.adapted(indices, self.layers.factors())

    def forward(self, *arguments: Any, **batch: Any) -> ModelOutput:
        """The transformers model's output under the current configuration."""
        return self.model(*arguments, **batch)

    def generate(self, *arguments: Any, **options: Any) -> Tensor:
        """transformers' ``generate`` under the current configuration, for decoder models."""
        return self.model.generate(*arguments, **options)

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
            ValueError: no configuration is given or set, it does not fit the model, or ``weights``
                is not known, or not to be had in the model's space.
            FileExistsError: the folder holds something else.
        """
        configuration = self.configuration if configuration is None else configuration
        if configuration is None:
            raise ValueError(
                "no configuration is set, and none is given: there is nothing to export"
            )
        resolved = self.resolve(configuration)
        fixed = fixed_layers(self.layers, self.adapted_factors(resolved), resolved)
        return write_adapter(self.model, fixed, folder, weights)

    def save_pretrained(self, folder: str | Path, quantized: bool = False) -> Path:
        """Write the whole method into one folder, see :mod:`.saving`; the model is left as it is.

        Args:
            folder: new, empty, or written by this method before; then it is replaced as a whole.
            quantized: also write the packed weights of the current configuration.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: ``quantized`` without a current configuration.
        """
        current, own = self.configuration, self._own_parameters
        if quantized and current is None:
            raise ValueError("no configuration is set: there are no quantized weights to write")
        packed = packed_tensors(self.layers.packed(current)) if quantized and current else {}
        content = saving.Content(
            settings=self.settings,
            configuration=None if current is None else self.space.to_rows(current),
            training_set=[self.space.to_rows(each) for each in self.training_set],
            parameters={
                n: p.detach() for n, p in self.named_parameters() if n in own or p.requires_grad
            },
            errors=self._resolver.errors,
            mean_inputs=self.mean_inputs,
        )
        base = self.model.get_base_model()
        return saving.write(folder, content, base, self.pretrained_weights, packed)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_model: PreTrainedModel | None = None,
        cache_bytes: int = CACHE_LIMIT,
    ) -> CoaLora:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: that it was written to.
            base_model: the model that it was attached to; loaded by its name if it is not given.
            cache_bytes: as for :meth:`attach`.

        Raises:
            FileNotFoundError: there is no such folder, or a file is missing in it.
            ValueError: the folder is not one of ours, or a file was altered or cut short; or the
                base model is another one.
            OSError: the base model cannot be loaded by its name.
        """
        saved = saving.read(folder)
        content, space = saved.content, get_space(saved.content.settings.space)
        base_model = saving.matching_base(saved, base_model)
        means = content.mean_inputs or None
        model = cls(base_model, content.settings, content.errors, cache_bytes, means)
        saving.load_parameters(model, content.parameters, str(saved.folder / saving.WEIGHTS))
        model.training_set = [space.from_rows(rows) for rows in content.training_set]
        if content.configuration is not None:
            model.set_configuration(space.from_rows(content.configuration))
        return model

    def _apply(self, fn, *args: Any, **kwargs: Any) -> CoaLora:
        """What ``.to()`` and its kin do, also for the indices of the current configuration."""
        super()._apply(fn, *args, **kwargs)
        if self._indices is not None:
            self._indices = self._indices.to(self.device)
        return self
