"""The parts of a model that are trained in full: heads, and parts that the checkpoint lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

#: What stands between a pre-trained model and its head, and was trained for another task.
POOLER = "pooler"


def find_heads(model: PreTrainedModel) -> list[str]:
    """Paths of the parts that need training in full.

    These are the parts that the model's checkpoint lacked, which transformers initialised at
    random; what stands beside the pre-trained model, unless it is an output layer over the
    vocabulary; and poolers. A model that was made from a configuration has no checkpoint: all of
    it is random, and the last two rules alone decide.
    """
    fresh = set(fresh_parameters(model))
    fresh_ids = {id(p) for name, p in model.named_parameters() if name in fresh}
    found = [
        name
        for name, module in _outermost(model, _never(model))
        if name.rsplit(".", 1)[-1] == POOLER
        or all(id(parameter) in fresh_ids for parameter in module.parameters())
        or _beside(name, model)
    ]
    return _outer_only(found)


def named_heads(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Paths of the parts with these names: whole paths, or their last parts.

    Raises:
        ValueError: the model has no such part, or the part has no parameters.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found = []
    for wanted in names:
        paths = [path for path in modules if path == wanted or path.endswith(f".{wanted}")]
        paths = [path for path in paths if any(True for _ in modules[path].parameters())]
        if not paths:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"heads: the {type(model).__name__} has no part {wanted!r} with parameters; its "
                f"outermost parts are {children}"
            )
        found += paths
    return _outer_only(found)


def warn_of_random_parts(model: PreTrainedModel, heads: Sequence[str]) -> None:
    """Warn of parameters that the checkpoint lacked and that no head holds: they stay random."""
    fresh = [name for name in fresh_parameters(model) if not is_inside(name, heads)]
    if fresh:
        more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
        warnings.warn(
            f"{fresh[0]}{more}: the checkpoint does not have these weights, so they "
            "are random, and they are not trained; name the part in heads= to train it",
            stacklevel=2,
        )


def fresh_parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that the checkpoint lacked; none if there was no checkpoint.

    transformers marks what it loaded. A move to a GPU loses the marks, and then all counts as
    loaded.
    """
    marked = {n: getattr(p, "_is_hf_initialized", False) for n, p in model.named_parameters()}
    return [name for name, loaded in marked.items() if not loaded] if any(marked.values()) else []


def plain_name(name: str) -> str:
    """The name that a parameter has in the transformers model without PEFT's wrappers."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def is_inside(name: str, heads: Sequence[str]) -> bool:
    """Whether a parameter or module is in one of the heads."""
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _never(model: PreTrainedModel) -> list[nn.Module]:
    """Embeddings and the output layer over the vocabulary: pre-trained, and often one weight."""
    output = model.get_output_embeddings()
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return embeddings if output is None else [*embeddings, output]


def _outermost(
    model: nn.Module, kept: Sequence[nn.Module], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters and without any of the kept ones inside, from the outside in."""
    for name, module in model.named_children():
        path = f"{prefix}{name}"
        if not any(True for _ in module.parameters()):
            continue
        if not any(inner is each for inner in module.modules() for each in kept):
            yield path, module
        yield from _outermost(module, kept, f"{path}.")


def _beside(name: str, model: PreTrainedModel) -> bool:
    """Whether an outermost module stands beside the pre-trained model."""
    base = model.base_model
    if "." in name or base is model or model.get_output_embeddings() is not None:
        return False
    return model.get_submodule(name) is not base


def _outer_only(paths: Sequence[str]) -> list[str]:
    """Without what is inside another one of them, each once."""
    distinct = list(dict.fromkeys(paths))
    return [p for p in distinct if not any(is_inside(p, [o]) for o in distinct if o != p)]
