"""The book: what chapters call is here, its execution and rendering are for the command line."""

from coalora_lib.book.benchmarks import read_benchmarks
from coalora_lib.book.chapter import COLOURS, begin, provenance, table

__all__ = ["COLOURS", "begin", "provenance", "read_benchmarks", "table"]
