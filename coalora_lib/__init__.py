"""Configuration-Aware LoRA (arXiv 2509.25214), as a small library behind a book.

One module an idea; imports run one way, as CONTRIBUTING.md draws it and ``lint-imports`` checks.
"""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coalora_lib.adapter import CoaLora

# PEFT imports it, and on some processors it warns, at import, of an optional package.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["CoaLora", "__version__"]


def __getattr__(name: str) -> type["CoaLora"]:
    """``CoaLora`` at its first use: ``import coalora_lib`` alone does not load torch or PEFT."""
    if name == "CoaLora":
        from coalora_lib.adapter import CoaLora

        return CoaLora
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
