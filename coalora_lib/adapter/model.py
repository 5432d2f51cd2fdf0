"""CoaLora: a transformers model whose LoRA follows the quantization configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from coalora_lib.adapter import fitted, saving
from coalora_lib.adapter.adjusters import Adjustment, Factors, HyperNetwork, new_adjuster
from coalora_lib.adapter.cache import WeightCache, default_limit
from coalora_lib.adapter.checkpointing import recompute_as_before
from coalora_lib.adapter.export import packed_tensors
from coalora_lib.adapter.exports import Exports
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.lora import attach_lora, check_base
from coalora_lib.adapter.report import Report, warn_of_what_is_left
from coalora_lib.adapter.resolving import ConfigurationLike, ConfigurationResolver
from coalora_lib.adapter.settings import AdapterSettings, Start
from coalora_lib.adapter.weights import Place, keep
from coalora_lib.spaces import Choice, ConfigurationSpace, get_space, parameters

#: Mean bits that the start "svd" takes its residual at: one of the paper's figure 1, 2.5 to 4.
REFERENCE_BUDGET = 3.0
#: A configuration, or what is allocated at :data:`REFERENCE_BUDGET`.
StartConfiguration = ConfigurationLike | Literal["reference"]


class CoaLora(Exports):
    """Standard PEFT LoRA layers, quantized weights behind them, and an adjuster between.

    For the current configuration C each adapted layer i computes

        y = Q(W_i; c_i) x + bias_i + (alpha / r) L1_i (I + U_theta(Q_i)) L2_i x

    with Q(W; c) the quantized weight, L1 and L2 PEFT's ``lora_B`` and ``lora_A``. Build it with
    :meth:`attach`, or :meth:`from_pretrained`.

    Attributes:
        model: the PEFT model.
        adjuster: what makes U, or takes its place.
        layer_names: the adapted linear layers, in the model's order.
        shapes, sizes: shape and number of weights of each of them.
        training_set: the configurations it was last trained on; kept when it is saved.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        settings: AdapterSettings,
        errors: Tensor | None = None,
        cache_bytes: int | None = None,
        mean_inputs: Mapping[str, Tensor] | None = None,
        second_moments: Mapping[str, Tensor] | None = None,
        start_configuration: StartConfiguration | None = None,
        pretrained: Place = "device",
    ) -> None:
        super().__init__()
        # What may be refused is, before the base model is touched.
        heads, self.layer_names = check_base(base_model, settings.heads, settings.target_layers)
        self.settings = settings.model_copy(update={"heads": tuple(heads)})
        self.space = get_space(settings.space)
        linears = {name: base_model.get_submodule(name) for name in self.layer_names}
        weights = {name: linear.weight.detach() for name, linear in linears.items()}
        estimate = settings.errors == "estimated"
        self._resolver = ConfigurationResolver(weights, self.space, errors, estimate)
        self.shapes = self._resolver.shapes
        self.sizes = [parameters(shape) for shape in self.shapes]
        settings.check(linears, mean_inputs, second_moments)
        reference = self._reference(start_configuration, weights)
        kept = keep(weights, pretrained)
        del linears, weights  # where the weights are kept apart, nothing else holds on to them

        warn_of_what_is_left(base_model, self.layer_names, heads)
        self.model = attach_lora(base_model, settings.rank, settings.alpha, heads, self.layer_names)
        self.model.save_pretrained = saving.refuse_inner_save
        cache = WeightCache(default_limit(kept.values()) if cache_bytes is None else cache_bytes)
        moments = settings.rank_of_frozen_term, mean_inputs, second_moments
        self.layers = AdaptedLayers(base_model, self.layer_names, self.space, cache, kept, *moments)
        self.training_set: list[list[Choice]] = []
        self._indices: Tensor | None = None
        self.adjuster = new_adjuster(
            settings, self.space, self.layers.pretrained, self.layers.factors(), lambda: self.errors
        )
        if reference is not None:
            self.layers.start_from_residual(reference, settings.rank)
        #: What is saved, whatever is done to ``requires_grad`` later.
        self._own_parameters = frozenset(saving.trained_parameters(self))
        self.join_transformers()
        # On the transformers model, so that every way in passes it: forward, PEFT, generate.
        base_model.register_forward_pre_hook(self.adapt)

    def _reference(
        self, asked: StartConfiguration | None, weights: Mapping[str, Tensor]
    ) -> list[Choice] | None:
        """What the start "svd" takes its residual at; None for other starts, and without one."""
        if self.settings.start != "svd" or asked is None:
            return None
        if asked == "reference":
            asked = max(REFERENCE_BUDGET, self._resolver.fewest_bits())
        return self._resolver(asked, weights)

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
        start_configuration: StartConfiguration = "reference",
        cache_bytes: int | None = None,
        mean_inputs: Mapping[str, Tensor] | None = None,
        second_moments: Mapping[str, Tensor] | None = None,
        pretrained: Place = "device",
        **options: Any,
    ) -> Self:
        """Put LoRA on linear layers: those inside the model's blocks, or ``target_layers``.

        Heads, and parts that the checkpoint lacks, are trained in full; ``heads`` names other
        parts.

        Args:
            base_model: a transformers model; it is taken over and changed, unless it is refused.
            rank, alpha, start, options: see :class:`~coalora_lib.adapter.AdapterSettings`.
            space: what layers may be quantized to; the name of a registered space, or that space.
            errors: "estimated" from a sample or "exact" when a budget is first asked for, see
                :func:`~coalora_lib.allocation.error_table`; or the (layers, choices) table.
            start_configuration: whose residual the start "svd" begins from; by default what is
                allocated at 3.0 bits, or at the fewest bits that the layers can take.
            cache_bytes: memory that the weights of other configurations may take; by default four
                times that of the adapted weights, and 4 GiB at most; an eighth of those kept apart.
            mean_inputs: E[x] of each layer, (in,), by name, for ``bias_correction=True``; of the
                unquantized model on the task's data.
            second_moments: E[x x^T] of each layer, (in, in), by name, for ``start="calibrated"``;
                with the means from :func:`~coalora_lib.training.input_moments`.
            pretrained: where the unquantized weights are kept. "device": with the model, which is
                fastest. "cpu": in the processor's memory. "disk": in a temporary folder, of which
                the system loads what is read. A Path: in that folder, which is filled if it is
                new or empty; or in the safetensors files of the model's checkpoint. Apart from the
                model, only the quantized weights that compute take memory on its device.

        Raises:
            ValueError: the model is refused, or a setting is not known or out of range.
            FileExistsError: ``pretrained`` is a folder with other things.
        """
        table = errors if isinstance(errors, Tensor) else None
        if table is None and errors not in ("estimated", "exact"):
            raise ValueError(f"errors={errors!r}; allowed: 'estimated', 'exact' or the table")
        options |= {"errors": errors if table is None else "given", "space": get_space(space).name}
        settings = AdapterSettings.of(rank=rank, alpha=alpha, start=start, **options)
        moments = mean_inputs, second_moments
        return cls(
            base_model, settings, table, cache_bytes, *moments, start_configuration, pretrained
        )

    @property
    def configuration(self) -> list[Choice] | None:
        """The current configuration, or None while the weights are unquantized."""
        return None if self.layers.configuration is None else list(self.layers.configuration)

    @property
    def bits(self) -> float | None:
        """Mean bits per parameter of the adapted layers under the current configuration, scales
        included; :meth:`report` says which share of the model they are."""
        current = self.layers.configuration
        return None if current is None else self.space.mean_bits(current, self.shapes)

    def report(self) -> Report:
        """How many weights are quantized, adapted, trained in full, and left as they are."""
        return Report.of(self.model.get_base_model(), self.pretrained_weights, self.settings.heads)

    @property
    def errors(self) -> Tensor:
        """The (layers, choices) table of squared errors, measured as ``settings.errors`` says."""
        return self._resolver.measured_errors(self.pretrained_weights)

    @property
    def pretrained_weights(self) -> Mapping[str, Tensor]:
        """The unquantized weight of each adapted layer, by name; not to be written to. Each is read
        when it is asked for, from where it is kept."""
        return self.layers.pretrained

    @property
    def mean_inputs(self) -> dict[str, Tensor]:
        """E[x] of each layer by name; empty without bias correction."""
        return self.layers.mean_inputs

    def resolve(self, configuration: ConfigurationLike) -> list[Choice]:
        """The choice of every layer that :meth:`set_configuration` would set, with its errors; the
        first budget measures the error table, see :attr:`errors`."""
        return self._resolver(configuration, self.pretrained_weights)

    @torch.inference_mode(False)
    def set_configuration(self, configuration: ConfigurationLike | None) -> None:
        """Switch to a configuration: set the quantized weights, and adjust the adapter to them.

        Weights and corrections are there when this returns. The adjusted factors are made at the
        next forward, by :meth:`adapt`, since gradients flow through them.

        Args:
            configuration: one choice for each of :attr:`layer_names`, in that order or by name; or
                a budget in mean bits per parameter; or
                :class:`~coalora_lib.allocation.Constraints` (allowed bit widths, bytes, ...), for
                which the least-error configuration is allocated. None goes back to the pre-trained
                weights and plain LoRA.

        Raises:
            ValueError: number or names of the layers differ, a layer may not take its choice, or
                budget or constraints are not feasible; the model is left as it was.
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
        recompute_as_before(self.checkpointable)
        if self.layers.lora_off:
            self.layers.use(self.layers.no_factors())
        elif self._indices is not None and self.adjuster.follows:
            # A copy, since a backward may need them after the next configuration was written there.
            self.layers.use(self.adjuster.adapted(self._indices.clone(), self.layers.factors()))

    def adjustments(self, configuration: Sequence[Choice]) -> Adjustment:
        """U and v of every layer under a configuration; ValueError without a hypernetwork."""
        if not isinstance(self.adjuster, HyperNetwork):
            given = self.settings.adjuster
            raise ValueError(f"attached with adjuster={given!r}: there are no adjustments")
        return self.adjuster(self.space.to_indices(configuration).to(self.device))

    def adapted_factors(self, configuration: Sequence[Choice]) -> list[Factors]:
        """The LoRA factors of every layer under a configuration; L1 is zero where LoRA is off."""
        if self.layers.replaced(configuration):
            return self.layers.no_factors()
        indices = self.space.to_indices(configuration).to(self.device)
        return self.adjuster.adapted(indices, self.layers.factors())

    def save_pretrained(self, folder: str | Path, quantized: bool = False) -> Path:
        """Write the whole method into one folder, see :mod:`.saving`; the model is left as it is.

        The folder is new, empty, or one of ours, which is replaced as a whole. ``quantized`` also
        writes the packed weights of the current configuration.

        Raises:
            FileExistsError: the folder holds something else.
            ValueError: ``quantized`` without a current configuration.
        """
        current, own, base = self.configuration, self._own_parameters, self.get_base_model()
        if quantized and current is None:
            raise ValueError("no configuration is set: there are no quantized weights to write")
        packed = packed_tensors(self.layers.packed(current)) if quantized and current else {}
        content = saving.Content(
            {n: p.detach() for n, p in self.named_parameters() if n in own or p.requires_grad},
            self._resolver.errors,
            self.mean_inputs,
            self.layers.second_moments,
            fitted.as_tensors(self.layers),
        )
        about = {
            "settings": self.settings,
            "configuration": None if current is None else self.space.to_rows(current),
            "training_set": [self.space.to_rows(each) for each in self.training_set],
            "fitted": fitted.described(self.layers),
        }
        return saving.write(folder, about, content, base, self.pretrained_weights, packed)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_model: PreTrainedModel | None = None,
        cache_bytes: int | None = None,
        pretrained: Place = "device",
    ) -> Self:
        """Read what :meth:`save_pretrained` wrote; the base model is loaded by name unless given.

        ``cache_bytes`` and ``pretrained`` are those of :meth:`attach`: a folder does not record how
        the memory was used.

        Raises:
            FileNotFoundError: there is no such folder, or a file is missing in it.
            ValueError: the folder is not one of ours, or a file was altered or cut short; or the
                base model is another one.
            OSError: the base model cannot be loaded by its name.
        """
        saved = saving.read(folder)
        about, content = saved.description, saved.content
        base_model = saving.matching_base(saved, base_model)
        means, seconds = content.mean_inputs or None, content.second_moments or None
        with saving.named(saved.folder):
            model = cls(
                base_model,
                about.settings,
                content.errors,
                cache_bytes,
                means,
                seconds,
                pretrained=pretrained,
            )
            saving.load_parameters(model, content.parameters, saving.WEIGHTS)
            fitted.take(model.layers, about.fitted, content.fitted)
        model.training_set = [model.space.from_rows(rows) for rows in about.training_set]
        if about.configuration is not None:
            model.set_configuration(model.space.from_rows(about.configuration))
        return model

    def _apply(self, fn, *args: Any, **kwargs: Any) -> Self:
        """What ``.to()`` and its kin do, for all that the model holds.

        In another dtype the weights are quantized anew: it computes with what it exports.
        """
        kept = next(iter(self.layers.quantized.values())).kept
        rounded = fn(torch.empty(0, device=kept.device, dtype=kept.dtype)).dtype != kept.dtype
        if rounded:
            self.layers.hold_codes()
        super()._apply(fn, *args, **kwargs)
        self.layers.move_fitted()
        if self._indices is not None:
            self._indices = self._indices.to(self.device)
        if rounded and self.configuration is not None:
            self.set_configuration(self.configuration)
        return self
