"""The configuration-aware adapter: from a configuration to the LoRA it needs."""

from coalora_lib.adapter.adjusters import Adjuster, Adjustment, FactorBank, Factors, HyperNetwork
from coalora_lib.adapter.encoding import ConfigurationEncoder, describe_layers
from coalora_lib.adapter.frozen import PackedLinear, load_frozen, save_frozen
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.adapter.model import CoaLora
from coalora_lib.adapter.ordered import OrderedFit
from coalora_lib.adapter.report import Report
from coalora_lib.adapter.resolving import ConfigurationLike
from coalora_lib.adapter.settings import AdapterSettings

__all__ = [
    "AdapterSettings",
    "Adjuster",
    "Adjustment",
    "CoaLora",
    "ConfigurationEncoder",
    "ConfigurationLike",
    "FactorBank",
    "Factors",
    "HyperNetwork",
    "OrderedFit",
    "PackedLinear",
    "Report",
    "adaptable_layers",
    "describe_layers",
    "load_frozen",
    "save_frozen",
]
