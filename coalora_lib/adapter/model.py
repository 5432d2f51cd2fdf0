"""CoaLora: a transformers model whose LoRA follows the quantization configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter import export, saving
from coalora_lib.adapter.encoding import (
    ConfigurationEncoder,
    ContinuousMeasures,
    describe_layers,
)
from coalora_lib.adapter.hypernetwork import Adjustment, HyperNetwork
from coalora_lib.adapter.layers import AdjustedFactor, CompactWeight, WeightCache
from coalora_lib.adapter.linear import frozen_copies
from coalora_lib.adapter.lora import adaptable_layers, attach_lora
from coalora_lib.adapter.settings import AdapterSettings
from coalora_lib.allocation import Device, allocate, error_table
from coalora_lib.configuration import LayerConfig, mean_bits, to_indices
from coalora_lib.decomposition import truncated_svd

#: Bytes that a model's weight cache may hold, unless told otherwise.
CACHE_LIMIT = 4 * 2**30
#: Mean bits of the configuration that the start "svd" takes its residual from by default.
REFERENCE_BUDGET = 3.0

#: What :meth:`CoaLora.set_configuration` takes.
ConfigurationLike = Sequence[LayerConfig] | Mapping[str, LayerConfig] | Device | float


class CoaLora(nn.Module):
    """Standard PEFT LoRA layers plus one hypernetwork that adjusts them to the configuration.

    For the current configuration C each adapted layer i computes

        y = Q(W_i; c_i) x + bias_i + (alpha / r) L1_i (I + U_theta(Q_i)) L2_i x

    with Q(W; c) the quantized weight, L1 and L2 PEFT's ``lora_B`` and ``lora_A``. Pre-trained
    biases are kept. Build it with :meth:`attach`, or :meth:`from_pretrained`.

    Attributes:
        model: the PEFT model.
        settings: what it was attached with.
        layer_names: the adapted linear layers, in the model's order.
        sizes: number of weights of each of them.
        training_set: the configurations it was last trained on; kept when it is saved.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        settings: AdapterSettings,
        errors: Tensor | None = None,
        cache_bytes: int = CACHE_LIMIT,
        mean_inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        names = adaptable_layers(base_model)
        if not names:
            raise ValueError(f"{type(base_model).__name__} has no linear layer in numbered blocks")
        self.settings = settings
        self.layer_names = names
        self.model = attach_lora(base_model, settings.rank, settings.alpha)
        self._layers = [base_model.get_submodule(name) for name in names]
        for layer in self._layers:
            for place in (layer.lora_A, layer.lora_B):
                place["default"] = AdjustedFactor(place["default"])
        self._factors = [layer.lora_A["default"] for layer in self._layers]
        self._outputs = [layer.lora_B["default"] for layer in self._layers]
        weights = [layer.base_layer.weight.detach() for layer in self._layers]
        self.sizes = [weight.numel() for weight in weights]
        self._configuration: list[LayerConfig] | None = None
        self.training_set: list[list[LayerConfig]] = []
        self._indices: Tensor | None = None
        self._in_place = False
        self._cache = WeightCache(
            dict(zip(names, weights, strict=True)),
            cache_bytes,
            settings.scheme,
            settings.frozen_rank,
            self._checked_means(mean_inputs),
            transposed=isinstance(self._layers[0].base_layer, Conv1D),
        )
        self._errors = errors
        self.hypernetwork = self._new_hypernetwork() if settings.configuration_aware else None
        by_width: dict[int, list[int]] = {}
        for number, factor in enumerate(self._factors):
            by_width.setdefault(factor.in_features, []).append(number)
        self._by_width = list(by_width.values())
        for group, numbers in enumerate(self._by_width):  # buffers, to be where the model is
            rows = torch.tensor(numbers, device=base_model.device)
            self.register_buffer(f"_rows{group}", rows, persistent=False)
        # On the transformers model, so that every way in passes it: forward, PEFT, generate.
        base_model.register_forward_pre_hook(self._adapt)

    @classmethod
    def attach(
        cls,
        base_model: PreTrainedModel,
        rank: int = 16,
        alpha: float = 16,
        start: str = "zero",
        *,
        errors: Tensor | None = None,
        start_configuration: ConfigurationLike = REFERENCE_BUDGET,
        cache_bytes: int = CACHE_LIMIT,
        mean_inputs: Mapping[str, Tensor] | None = None,
        **options,
    ) -> CoaLora:
        """Put LoRA on every linear layer inside the model's blocks.

        Args:
            base_model: a transformers model; it is taken over and changed.
            rank, alpha, start: see :class:`~coalora_lib.adapter.AdapterSettings`.
            errors: the model's (layers, 432) error table where the caller has it; otherwise it
                is computed when a budget is first asked for.
            start_configuration: whose residual the start "svd" begins from.
            cache_bytes: what the weights of other configurations may take in memory.
            mean_inputs: E[x] of each layer, (in,), by name, for ``bias_correction=True``; of the
                unquantized model on the task's data.
            options: the other fields of :class:`~coalora_lib.adapter.AdapterSettings`.

        Raises:
            ValueError: the model has no linear layer in a numbered block, or a setting is not
                known or out of range.
        """
        settings = AdapterSettings(rank=rank, alpha=alpha, start=start, **options)
        model = cls(base_model, settings, errors, cache_bytes, mean_inputs)
        if start == "svd":
            model._start_from_residual(model.resolve(start_configuration))
        return model

    @property
    def config(self):
        """The transformers model's configuration (sizes, labels, special tokens)."""
        return self.model.get_base_model().config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_base_model().device

    @property
    def configuration(self) -> list[LayerConfig] | None:
        """The current configuration, or None while the weights are unquantized."""
        return None if self._configuration is None else list(self._configuration)

    @property
    def bits(self) -> float | None:
        """Mean bits per parameter of the current configuration, scales included."""
        if self._configuration is None:
            return None
        return mean_bits(self._configuration, self.sizes)

    @property
    def scaling(self) -> float:
        """alpha / r, the factor on the LoRA output."""
        return self._layers[0].scaling["default"]

    @property
    def errors(self) -> Tensor:
        """The (layers, 432) table of squared quantization errors, computed at first use."""
        if self._errors is None:
            self._errors = error_table(self._cache.weights, self.settings.scheme)
        return self._errors

    @property
    def pretrained_weights(self) -> dict[str, Tensor]:
        """The unquantized weight of each adapted layer, by name."""
        return dict(self._cache.weights)

    @property
    def mean_inputs(self) -> dict[str, Tensor]:
        """E[x] of each layer by name; empty without bias correction."""
        return dict(self._cache.mean_inputs)

    def resolve(self, configuration: ConfigurationLike) -> list[LayerConfig]:
        """The configuration of every layer that :meth:`set_configuration` would set.

        Raises:
            ValueError: as :meth:`set_configuration`.
            TypeError: what is given is no configuration.
        """
        if isinstance(configuration, Real) and not isinstance(configuration, bool):
            configuration = Device(budget=float(configuration))
        if isinstance(configuration, Device):
            return allocate(
                self.errors, self.sizes, names=self.layer_names, **vars(configuration)
            ).configs
        if isinstance(configuration, Mapping):
            missing = [name for name in self.layer_names if name not in configuration]
            unknown = [name for name in configuration if name not in self.layer_names]
            for problem, names in (("lacks", missing), ("has no such layer as", unknown)):
                if names:
                    subject = "the configuration" if names is missing else "this model"
                    raise ValueError(f"{subject} {problem} {names[0]!r} ({len(names)} in all)")
            configuration = [configuration[name] for name in self.layer_names]
        if not isinstance(configuration, Sequence) or isinstance(configuration, str | bytes):
            raise TypeError(
                f"{configuration!r} is no configuration; allowed: a budget in bits per parameter, "
                "a Device, or one LayerConfig a layer, in order or by name"
            )
        if len(configuration) != len(self.layer_names):
            raise ValueError(
                f"{len(configuration)} layer configurations for {len(self.layer_names)} layers"
            )
        for name, config in zip(self.layer_names, configuration, strict=True):
            if not isinstance(config, LayerConfig):
                raise TypeError(f"{name}: {config!r} is not a LayerConfig")
        return list(configuration)

    def set_configuration(self, configuration: ConfigurationLike | None) -> None:
        """Switch to a configuration: quantized weights move in, the adapter follows.

        Args:
            configuration: one LayerConfig for each of :attr:`layer_names`, in that order or by
                name; or a budget in mean bits per parameter; or a
                :class:`~coalora_lib.allocation.Device` (allowed bit widths, bytes, ...), for
                which the least-error configuration is allocated. None puts the pre-trained
                weights back, with LoRA unadjusted.

        Raises:
            ValueError: the number or the names of the layers differ, or the budget or device is
                not feasible; the model is left as it was.
            TypeError: what is given is no configuration.
        """
        if configuration is None:
            self._unset_configuration()
            return
        configuration = self.resolve(configuration)
        # Of the dtype of the weights that they are copied to, so that one kernel copies all.
        dtype = self._layers[0].base_layer.weight.dtype if self._in_place else None
        weights = [
            self._cache.get(name, config, dtype)
            for name, config in zip(self.layer_names, configuration, strict=True)
        ]
        indices = to_indices(configuration)
        self._correct(configuration)
        if self._in_place:
            torch._foreach_copy_([layer.base_layer.weight.data for layer in self._layers], weights)
        else:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.base_layer.weight = weight
        if self._in_place and self._indices is not None:
            self._indices.copy_(indices)
        else:
            self._indices = indices.to(self.device)
        self._configuration = configuration

    def _unset_configuration(self) -> None:
        weights = self._cache.weights.values()
        for layer, weight in zip(self._layers, weights, strict=True):
            layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
        for factor in (*self._factors, *self._outputs):
            factor.adjusted = factor.shift = None
        self._configuration = self._indices = None

    @contextmanager
    def weights_in_place(self) -> Iterator[None]:
        """While it lasts, a configuration is copied to where the one before it was.

        That costs a copy, and captured CUDA graphs see the new weights.
        """
        try:
            with frozen_copies(self._layers):
                for output in self._outputs if self.settings.bias_correction else ():
                    zeros = output.weight.new_zeros(output.out_features)
                    output.shift = zeros if output.shift is None else output.shift.clone()
                self._in_place = True
                yield
        finally:
            self._in_place = False
            if self._configuration is not None:
                self.set_configuration(self._configuration)
            else:
                for output in self._outputs:
                    output.shift = None

    def corrections(self, configuration: Sequence[LayerConfig]) -> list[Tensor]:
        """What bias correction adds to each layer's output, by r / alpha: (out,) each.

        PEFT scales what ``lora_B`` gives, its bias too.
        """
        lost = [
            self._cache.correction(name, config)
            for name, config in zip(self.layer_names, configuration, strict=True)
        ]
        dtype = self._outputs[0].weight.dtype
        return [each.to(dtype) for each in torch._foreach_div(lost, self.scaling)]

    def adjustments(self, configuration: Sequence[LayerConfig]) -> Adjustment:
        """U, (layers, r, r), and v, (layers, r), of every layer under a configuration.

        Raises:
            ValueError: the model is not configuration-aware.
        """
        if self.hypernetwork is None:
            raise ValueError("attached with configuration_aware=False: there are no adjustments")
        return self.hypernetwork(to_indices(configuration).to(self.device))

    def adjusted_factors(self, adjustment: Adjustment) -> list[Tensor]:
        """(I + U) L2 of every layer, each (r, in).

        Layers of the same width go through one batched product: a handful of kernels, whatever
        the number of layers.
        """
        factors: list[Tensor] = [None] * len(self._layers)
        for group, numbers in enumerate(self._by_width):
            # Not torch.stack: on a GPU it makes a view of each factor first, one by one.
            stacked = torch.cat([self._factors[i].weight for i in numbers])
            stacked = stacked.unflatten(0, (len(numbers), -1))
            matrix = adjustment.matrix.index_select(0, getattr(self, f"_rows{group}"))
            products = torch.baddbmm(stacked, matrix, stacked)
            for number, product in zip(numbers, products.unbind(), strict=True):
                factors[number] = product
        return factors

    def compact_weights(self, configuration: Sequence[LayerConfig]) -> dict[str, CompactWeight]:
        """Each layer's packed weight, and frozen low-rank term if it has one, by name."""
        return {
            name: self._cache.compact(name, config)
            for name, config in zip(self.layer_names, configuration, strict=True)
        }

    def forward(self, **batch: Tensor):
        """The transformers model's output under the current configuration."""
        return self.model(**batch)

    def generate(self, **arguments):
        """transformers' ``generate`` under the current configuration, for decoder models."""
        return self.model.generate(**arguments)

    def export_peft_adapter(
        self,
        folder: str | Path,
        configuration: ConfigurationLike | None = None,
        weights: str | None = None,
    ) -> Path:
        """Write the adapter for one configuration as plain PEFT; see :mod:`.export`."""
        return export.export_peft_adapter(self, folder, configuration, weights)

    def save_pretrained(self, folder: str | Path, quantized: bool = False) -> Path:
        """Write the whole method into one folder; see :mod:`.saving`."""
        return saving.save_pretrained(self, folder, quantized)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_model: PreTrainedModel | None = None,
        cache_bytes: int = CACHE_LIMIT,
    ) -> CoaLora:
        """Read what :meth:`save_pretrained` wrote; see :mod:`.saving`."""
        saved = saving.read(folder)
        base_model = saving.matching_base(saved, base_model)
        model = cls(base_model, saved.settings, saved.errors, cache_bytes, saved.mean_inputs)
        saving.restore(saved, model)
        return model

    def _checked_means(
        self, mean_inputs: Mapping[str, Tensor] | None
    ) -> Mapping[str, Tensor] | None:
        """The means if they are wanted and fit."""
        wanted = self.settings.bias_correction
        if wanted != (mean_inputs is not None):
            raise ValueError(
                f"bias_correction={wanted} {'needs' if wanted else 'has no use for'} mean_inputs"
            )
        for name, layer in zip(self.layer_names, self._layers, strict=True) if wanted else ():
            if name not in mean_inputs or mean_inputs[name].shape != (layer.in_features,):
                raise ValueError(f"mean_inputs[{name!r}] must be ({layer.in_features},)")
        return mean_inputs

    def _correct(self, configuration: Sequence[LayerConfig]) -> None:
        """Hand every layer the correction of its mean output."""
        if not self.settings.bias_correction:
            return
        shifts = self.corrections(configuration)
        if self._in_place:
            torch._foreach_copy_([output.shift for output in self._outputs], shifts)
            return
        for output, shift in zip(self._outputs, shifts, strict=True):
            output.shift = shift

    def _new_hypernetwork(self) -> HyperNetwork:
        settings, measures = self.settings, None
        if settings.error_features:
            weights = self._cache.weights.values()
            norms = torch.stack([weight.double().square().sum() for weight in weights])
            measures = ContinuousMeasures(self.errors, norms, self.sizes)
        layers = describe_layers(self.layer_names)
        network = HyperNetwork(
            ConfigurationEncoder(layers, settings.width, measures),
            settings.rank,
            settings.hidden,
            settings.learned_scale,
            settings.output_bias,
        )
        factor = self._factors[0].weight
        return network.to(factor.device, factor.dtype)

    @torch.no_grad()
    def _start_from_residual(self, configuration: Sequence[LayerConfig]) -> None:
        """(alpha / r) L1 L2 = SVD_r(W - Q) under one configuration."""
        compact = self.compact_weights(configuration)
        for layer, (name, quantized) in zip(self._layers, compact.items(), strict=True):
            rest = self._cache.weights[name].float() - quantized.restore().float()
            if isinstance(layer.base_layer, Conv1D):
                rest = rest.T
            left, right = truncated_svd(rest, self.settings.rank)
            layer.lora_B["default"].weight.copy_(left / self.scaling**0.5)
            layer.lora_A["default"].weight.copy_(right / self.scaling**0.5)

    def _adapt(self, *_) -> None:
        """Hand every layer its adjusted factor, before the transformers model's forward."""
        if self.hypernetwork is None or self._indices is None:
            return
        adjustment = self.hypernetwork(self._indices)
        shifts = [None] * len(self._layers) if adjustment.bias is None else adjustment.bias
        factors = self.adjusted_factors(adjustment)
        for lora_a, factor, shift in zip(self._factors, factors, shifts, strict=True):
            lora_a.adjusted, lora_a.shift = factor, shift

    def _apply(self, fn, *args, **kwargs):
        """What ``.to()`` and its kin do, also for the pre-trained weights behind the cache."""
        self._cache.convert(fn)
        super()._apply(fn, *args, **kwargs)
        if self._indices is not None:
            self._indices = self._indices.to(self.device)
        for output in self._outputs:
            output.shift = None if output.shift is None else fn(output.shift)
        return self
