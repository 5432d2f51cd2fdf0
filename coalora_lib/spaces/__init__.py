"""Spaces of choices: the choices for each layer, and the cost of a configuration."""

from coalora_lib.spaces.blockwise import INTEGER, NORMAL_FLOAT, BlockwiseSpace
from coalora_lib.spaces.costs import LayerCosts, mean_bits_cost
from coalora_lib.spaces.gguf import GGUF, GgufSpace, GgufWeight
from coalora_lib.spaces.sampling import random_at_bits, random_configuration
from coalora_lib.spaces.space import (
    Choice,
    Configuration,
    ConfigurationSpace,
    QuantizedWeight,
    Shape,
    get_space,
    parameters,
    register_space,
    spaces,
)

__all__ = [
    "GGUF",
    "INTEGER",
    "NORMAL_FLOAT",
    "BlockwiseSpace",
    "Choice",
    "Configuration",
    "ConfigurationSpace",
    "GgufSpace",
    "GgufWeight",
    "LayerCosts",
    "QuantizedWeight",
    "Shape",
    "get_space",
    "mean_bits_cost",
    "parameters",
    "random_at_bits",
    "random_configuration",
    "register_space",
    "spaces",
]
