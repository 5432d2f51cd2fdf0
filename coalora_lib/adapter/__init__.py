"""The configuration-aware adapter: from a configuration to the LoRA it needs."""

from coalora_lib.adapter.encoding import ConfigurationEncoder, describe_layers
from coalora_lib.adapter.hypernetwork import Adjustment, HyperNetwork
from coalora_lib.adapter.model import CoaLora
from coalora_lib.adapter.settings import AdapterSettings

__all__ = [
    "AdapterSettings",
    "Adjustment",
    "CoaLora",
    "ConfigurationEncoder",
    "HyperNetwork",
    "describe_layers",
]
