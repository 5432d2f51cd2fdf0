"""The book: how a chapter begins, its style and tables, its execution and rendering.

What chapters import is here; the other modules are for the command line.
"""

from coalora_lib.book.benchmarks import read_benchmarks
from coalora_lib.book.chapter import begin, provenance
from coalora_lib.book.style import COLOURS, table

__all__ = ["COLOURS", "begin", "provenance", "read_benchmarks", "table"]
