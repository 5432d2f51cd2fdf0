"""The book's experiments: profiles, shared set-up, methods, runs."""

from coalora_lib.experiments.benchmarks import read_benchmarks
from coalora_lib.experiments.chapter import Run, begin
from coalora_lib.experiments.profiles import PROFILES, Profile
from coalora_lib.experiments.provenance import provenance
from coalora_lib.experiments.setup import Setup, prepare
from coalora_lib.experiments.tables import table

__all__ = [
    "PROFILES",
    "Profile",
    "Run",
    "Setup",
    "begin",
    "prepare",
    "provenance",
    "read_benchmarks",
    "table",
]
