"""Tied parameters in a state dict: once, under their first name.

A module's state dict has a parameter that two modules share under both names, and safetensors, in
which a Trainer saves, refuses that.
"""

from typing import Any

from torch import Tensor, nn


def keep_once(model: nn.Module) -> None:
    """Have a model's state dict hold each shared parameter once; either form can be loaded."""
    model.register_state_dict_post_hook(_drop_others)
    model.register_load_state_dict_pre_hook(_fill_in_others)


def _others(model: nn.Module) -> dict[str, str]:
    """For each further name of a shared parameter, its first one."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    found = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    return {name: kept for name, kept in found.items() if name != kept}


def _drop_others(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in _others(model):
        state.pop(f"{prefix}{name}", None)


def _fill_in_others(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, kept in _others(model).items():
        if f"{prefix}{kept}" in state:
            state.setdefault(f"{prefix}{name}", state[f"{prefix}{kept}"])
