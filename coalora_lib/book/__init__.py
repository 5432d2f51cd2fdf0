"""The book: how a chapter begins, its plots and tables, its execution and rendering.

What chapters import is here. :mod:`~coalora_lib.book.execution` and
:mod:`~coalora_lib.book.rendering` are for the command line.
"""

from coalora_lib.book.benchmarks import read_benchmarks
from coalora_lib.book.chapter import begin
from coalora_lib.book.plots import COLOURS
from coalora_lib.book.provenance import provenance
from coalora_lib.book.tables import table

__all__ = ["COLOURS", "begin", "provenance", "read_benchmarks", "table"]
