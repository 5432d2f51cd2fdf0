"""The book's experiments: profiles, shared set-up, methods, runs."""

from coalora_lib.experiments.profiles import PROFILES, Profile, Run
from coalora_lib.experiments.setup import Setup, prepare

__all__ = ["PROFILES", "Profile", "Run", "Setup", "prepare"]
