"""Spaces by name."""

from __future__ import annotations

from coalora_lib.spaces.space import ConfigurationSpace

_SPACES: dict[str, ConfigurationSpace] = {}


def register_space(space: ConfigurationSpace) -> ConfigurationSpace:
    """Make a space known by its name; returns it.

    Raises:
        TypeError: it is no ConfigurationSpace.
        ValueError: another space has the name, or a field has no values or one twice.
    """
    if not isinstance(space, ConfigurationSpace):
        raise TypeError(f"{space!r} is no ConfigurationSpace")
    if _SPACES.get(space.name, space) is not space:
        raise ValueError(f"a space named {space.name!r} is registered already")
    for field, values in space.fields.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"field {field!r} of {space.name!r} needs distinct values: {values}")
    _SPACES[space.name] = space
    return space


def get_space(space: str | ConfigurationSpace) -> ConfigurationSpace:
    """The space of a name; a space as it is.

    Raises:
        ValueError: no space of that name is registered.
    """
    if isinstance(space, ConfigurationSpace):
        return space
    if space not in _SPACES:
        raise ValueError(f"space={space!r} is not known; allowed: {', '.join(_SPACES)}")
    return _SPACES[space]


def spaces() -> tuple[str, ...]:
    """The names of the registered spaces."""
    return tuple(_SPACES)
