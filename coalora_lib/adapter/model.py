"""CoaLora: a transformers model whose LoRA follows the quantization configuration."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from coalora_lib.adapter.encoding import ConfigurationEncoder, describe_layers
from coalora_lib.adapter.hypernetwork import HyperNetwork
from coalora_lib.adapter.layers import AdjustedLoraA, WeightCache
from coalora_lib.allocation import allocate, error_table
from coalora_lib.configuration import LayerConfig, mean_bits, to_indices

#: Parts outside the blocks that a classifier trains in full, where the model has them.
HEADS = ("classifier", "score", "pooler")
CACHE_LIMIT = 4 * 2**30


class CoaLora(nn.Module):
    """Standard PEFT LoRA layers plus one hypernetwork that adjusts them to the configuration.

    For the current configuration C each adapted layer i computes

        y = Q(W_i; c_i) x + bias_i + (alpha / r) L1_i (I + U_theta(Q_i)) L2_i x

    with Q(W; c) the quantized weight, L1 and L2 PEFT's ``lora_B`` and ``lora_A``. Pre-trained
    biases are kept. Build it with :meth:`attach`.

    Attributes:
        layer_names: the adapted linear layers, in the model's order.
        sizes: number of weights of each of them.
        configuration: the current configuration, or None while the weights are unquantized.
    """

    def __init__(
        self,
        model: PeftModel,
        hypernetwork: HyperNetwork | None,
        layer_names: Sequence[str],
        errors: Tensor | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.hypernetwork = hypernetwork
        self.layer_names = list(layer_names)
        inner = model.get_base_model()
        self._layers = [inner.get_submodule(name) for name in layer_names]
        for layer in self._layers:
            layer.lora_A["default"] = AdjustedLoraA(layer.lora_A["default"])
        weights = [layer.base_layer.weight.detach() for layer in self._layers]
        self.sizes = [weight.numel() for weight in weights]
        self.configuration: list[LayerConfig] | None = None
        self._cache = WeightCache(dict(zip(layer_names, weights, strict=True)), CACHE_LIMIT)
        self._errors = errors

    @classmethod
    def attach(
        cls,
        base_model: PreTrainedModel,
        rank: int = 16,
        alpha: float = 16,
        configuration_aware: bool = True,
        errors: Tensor | None = None,
    ) -> CoaLora:
        """Put LoRA on every linear layer inside the model's blocks, B starting at zero.

        Args:
            base_model: a transformers model; it is taken over and changed.
            rank: r of the LoRA factors.
            alpha: the LoRA output is scaled by alpha / rank.
            configuration_aware: False leaves the hypernetwork out: the same LoRA for every
                configuration (Shared-LoRA), or QLoRA when it is trained on one configuration.
            errors: the model's (layers, 432) error table where the caller has it; otherwise it
                is computed when a budget is first asked for.

        Raises:
            ValueError: the model has no linear layer in a numbered block.
        """
        names = adaptable_layers(base_model)
        if not names:
            raise ValueError(f"{type(base_model).__name__} has no linear layer in numbered blocks")
        present = {name.rsplit(".", 1)[-1] for name, _ in base_model.named_modules()}
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=names,
            modules_to_save=[head for head in HEADS if head in present],
        )
        device, dtype = base_model.device, base_model.dtype
        hypernetwork = None
        if configuration_aware:
            encoder = ConfigurationEncoder(describe_layers(names))
            hypernetwork = HyperNetwork(encoder, rank).to(device, dtype)
        return cls(get_peft_model(base_model, settings), hypernetwork, names, errors)

    @property
    def bits(self) -> float | None:
        """Mean bits per parameter of the current configuration, scales included."""
        if self.configuration is None:
            return None
        return mean_bits(self.configuration, self.sizes)

    @property
    def scaling(self) -> float:
        """alpha / r, the factor on the LoRA output."""
        return self._layers[0].scaling["default"]

    @property
    def errors(self) -> Tensor:
        """The (layers, 432) table of squared quantization errors, computed at first use."""
        if self._errors is None:
            self._errors = error_table(self._cache.weights)
        return self._errors

    def set_configuration(self, configuration: Sequence[LayerConfig] | float) -> None:
        """Switch to a configuration: quantized weights move in, the adapter follows.

        Args:
            configuration: one LayerConfig for each of :attr:`layer_names`, or a budget in mean
                bits per parameter, for which the least-error configuration is allocated.

        Raises:
            ValueError: the number of layers differs, or the budget is not feasible; the model
                is left as it was.
        """
        if isinstance(configuration, int | float):
            configuration = allocate(self.errors, self.sizes, configuration).configs
        if len(configuration) != len(self.layer_names):
            raise ValueError(
                f"{len(configuration)} layer configurations for {len(self.layer_names)} layers"
            )
        configuration = list(configuration)
        weights = [
            self._cache.get(name, config)
            for name, config in zip(self.layer_names, configuration, strict=True)
        ]
        for layer, weight in zip(self._layers, weights, strict=True):
            layer.base_layer.weight = weight
        self.configuration = configuration

    def adjustments(self, configuration: Sequence[LayerConfig]) -> Tensor:
        """U of every layer under a configuration: (layers, r, r).

        Raises:
            ValueError: the model is not configuration-aware.
        """
        if self.hypernetwork is None:
            raise ValueError("attached with configuration_aware=False: there are no adjustments")
        indices = to_indices(configuration).to(self.model.device)
        return self.hypernetwork(indices)

    def forward(self, **batch: Tensor):
        """The transformers model's output under the current configuration."""
        if self.hypernetwork is not None and self.configuration is not None:
            adjustments = self.adjustments(self.configuration)
            for layer, adjustment in zip(self._layers, adjustments, strict=True):
                layer.lora_A["default"].adjustment = adjustment
        return self.model(**batch)

    def _apply(self, fn, *args, **kwargs):
        """What ``.to()`` and its kin do, also for the pre-trained weights behind the cache."""
        self._cache.convert(fn)
        return super()._apply(fn, *args, **kwargs)


def adaptable_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers inside numbered blocks: not embeddings, pooler or head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    ]
