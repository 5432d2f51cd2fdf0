"""GGUF files, which llama.cpp runs: a quantized model and its LoRA adapter."""

from coalora_lib.gguf.architectures import architecture_of
from coalora_lib.gguf.card import card
from coalora_lib.gguf.files import BaseFile, Options, write_adapter_file
from coalora_lib.gguf.writing import padded

__all__ = ["BaseFile", "Options", "architecture_of", "card", "padded", "write_adapter_file"]
