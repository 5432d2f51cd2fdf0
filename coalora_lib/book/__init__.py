"""The book: what chapters call is here, its execution and rendering are for the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coalora_lib.book.benchmarks import read_benchmarks
    from coalora_lib.book.chapter import COLOURS, begin, numbers, provenance, table

__all__ = ["COLOURS", "begin", "numbers", "provenance", "read_benchmarks", "table"]


def __getattr__(name: str) -> Any:
    """What chapters call, at its first use: executing and rendering them needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "benchmarks" if name == "read_benchmarks" else "chapter"
    return getattr(import_module(f"{__name__}.{module}"), name)
