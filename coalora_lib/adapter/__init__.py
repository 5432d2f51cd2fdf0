"""The configuration-aware adapter: from a configuration to the LoRA it needs."""

from coalora_lib.adapter.encoding import ConfigurationEncoder, describe_layers
from coalora_lib.adapter.hypernetwork import HyperNetwork
from coalora_lib.adapter.model import CoaLora

__all__ = ["CoaLora", "ConfigurationEncoder", "HyperNetwork", "describe_layers"]
