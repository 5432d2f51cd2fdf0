"""One configuration as a plain model that stays small: packed weights, LoRA beside them.

    y = Q x + (alpha / r) L1 ((I + U) L2 x + v) + R1 R2 x + bias + (W_pre - Q) E[x]

Each layer keeps the packed Q, and restores it only while it computes. L1 and L2 with adjustment and
scaling, and the frozen term R1 R2, are one pair of factors; what does not depend on x is one bias.
The pre-trained weights are let go.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
import transformers
from accelerate import init_empty_weights
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from coalora_lib.adapter.adjusters import Factors
from coalora_lib.adapter.export import folded, without_idle
from coalora_lib.adapter.layers import AdaptedLayers
from coalora_lib.adapter.merging import copied
from coalora_lib.files import atomic_folder, seal, unseal
from coalora_lib.quantization.linear import with_lora
from coalora_lib.spaces import Choice, QuantizedWeight, get_space
from coalora_lib.validation import describe, flat

#: What a folder of a frozen model holds; the first says that it is one.
MARKER, TENSORS, CONFIG = "coalora_frozen.json", "model.safetensors", "config.json"
FILES = (TENSORS, CONFIG, "generation_config.json")
#: Before the names of a weight's stored tensors, in a layer's state.
STORED = "stored_"


class PackedLinear(nn.Module):
    """A linear layer over a packed weight, with LoRA factors and a bias.

    Its state holds the stored tensors as buffers. They keep their dtypes, whatever the model is
    moved to: only factors and bias follow.

    Args:
        quantized: the weight, (out, in), or (in, out) if it is ``transposed``.
        space, row: of its choice; kept for files.
        left, right: (out, k) and (k, in), or None; the term that is added to the weight.
        bias: (out,), or None.
    """

    left: nn.Parameter | None
    right: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        quantized: QuantizedWeight,
        space: str,
        row: int,
        transposed: bool = False,
        left: Tensor | None = None,
        right: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check(quantized)
        self.space, self.row, self.transposed = space, row, transposed
        for name, tensor in quantized.tensors():
            self.register_buffer(STORED + name, tensor)
        self._names = [name for name, _ in quantized.tensors()]
        # All but the tensors, which are the buffers: choice, shape, dtype.
        self._quantized: Any = replace(quantized, **dict.fromkeys(self._names))  # type: ignore[type-var]
        for name, given in (("left", left), ("right", right), ("bias", bias)):
            parameter = None if given is None else nn.Parameter(given, requires_grad=False)
            self.register_parameter(name, parameter)

    @property
    def quantized(self) -> QuantizedWeight:
        """The packed weight."""
        stored = {name: self.get_buffer(STORED + name) for name in self._names}
        return replace(self._quantized, **stored)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight, which some models ask for, without its values."""
        return torch.empty(self._quantized.shape, dtype=self._quantized.dtype, device="meta")

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        quantized, rest = self.quantized, (self.bias, self.left, self.right)
        if not self.transposed:
            return get_space(self.space).linear(quantized, inputs, *rest)
        output = F.linear(inputs, quantized.dequantize(inputs.dtype).T, self.bias)
        return with_lora(output, inputs, self.left, self.right)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_buffer(STORED + name) for name in self._names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = self.get_buffer(STORED + name)
            if moved.dtype != tensor.dtype:
                self.register_buffer(STORED + name, tensor.to(moved.device))
        dtypes = [p.dtype for p in (self.left, self.bias) if p is not None]
        if dtypes and dtypes[0] != self._quantized.dtype:
            self._quantized = replace(self._quantized, dtype=dtypes[0])
        return self


def _check(quantized: QuantizedWeight) -> None:
    """Refuse what :func:`dataclasses.replace` does not take: TypeError."""
    if not is_dataclass(quantized):
        raise TypeError(f"a {type(quantized).__name__} is not a dataclass, so it cannot be packed")


@torch.no_grad()
def frozen(
    base: PreTrainedModel,
    layers: AdaptedLayers,
    factors: Sequence[Factors],
    configuration: Sequence[Choice],
    owner: nn.Module,
) -> PreTrainedModel:
    """A plain model of its own memory for one configuration; arguments are those of
    :func:`.merging.merged`.

    Raises:
        TypeError: the space's quantized weights are no dataclasses.
    """
    factors = without_idle(factors, layers.have_terms(configuration))
    each = zip(configuration, layers.states(configuration), factors, strict=True)
    given = dict(zip(layers.quantized, each, strict=True))
    packed: dict[str, nn.Module] = {}
    for name, stored in layers.each_packed(configuration):
        layer, (choice, state, own) = layers.quantized[name], given[name]
        left, right, bias = folded(layer, state, stored, own, layers.scaling)
        dtype, idle = layer.kept.dtype, not left.any()
        packed[name] = PackedLinear(
            _copied(stored.quantized),
            layer.space.name,
            layer.space.index(choice),
            layer.transposed,
            None if idle else left.to(dtype),
            None if idle else right.to(dtype, copy=True),
            None if bias is None else bias.to(dtype, copy=True),
        )
    plain = copied(base, packed, deepcopy(base.config), owner)
    return plain.eval().requires_grad_(False)


def _copied(quantized: QuantizedWeight) -> QuantizedWeight:
    """In memory of its own: the model's cache holds the other."""
    _check(quantized)
    return replace(quantized, **{n: t.clone() for n, t in quantized.tensors()})  # type: ignore[type-var]


class _Layer(BaseModel):
    """What a file says of a packed layer, beside its tensors."""

    model_config = ConfigDict(extra="forbid")

    row: int  #: of the choice, in its space
    shape: tuple[int, ...]
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    transposed: bool


class _Description(BaseModel):
    """What a file says of a frozen model."""

    model_config = ConfigDict(extra="forbid")

    space: str
    model_class: str  #: of transformers
    layers: dict[str, _Layer]


def save_frozen(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write a frozen model into a folder; the model is left as it is.

    Args:
        model: that :meth:`~coalora_lib.adapter.CoaLora.freeze` made.
        folder: new, empty, or of an earlier frozen model, which is replaced.

    Raises:
        ValueError: the model has no packed layers, or their space cannot read them from a file.
        FileExistsError: the folder holds something else.
    """
    packed = {n: each for n, each in model.named_modules() if isinstance(each, PackedLinear)}
    if not packed:
        raise ValueError(
            "the model has no packed layers; CoaLora.freeze makes a model with packed layers"
        )
    space = get_space(next(iter(packed.values())).space)
    if not space.reads_weights:
        raise ValueError(
            f"space {space.name!r} has no method assemble, so that its weights could not be read"
        )
    about = _Description(
        space=space.name,
        model_class=type(model).__name__,
        layers={
            name: _Layer(
                row=each.row,
                shape=tuple(each.weight.shape),
                dtype=_name_of(each.weight.dtype),
                transposed=each.transposed,
            )
            for name, each in packed.items()
        },
    )
    state: dict[str, Tensor] = {}
    places = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in places:  # tied weights are stored once
            state[name] = tensor.detach().cpu().contiguous()
        places.add(tensor.data_ptr())
    with atomic_folder(folder, MARKER, FILES) as partial:
        (partial / MARKER).write_text(seal(about.model_dump(mode="json")))
        save_file(state, partial / TENSORS, {"format": "pt"})
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
    return Path(folder)


def load_frozen(folder: str | Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Read what :func:`save_frozen` wrote.

    On the processor tensors stay in the file, mapped into memory, until they are computed with.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder has no frozen model, or its files do not fit together.
    """
    folder = Path(folder)
    for name in (MARKER, TENSORS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file")
    try:
        about = _Description(**unseal((folder / MARKER).read_text()))
    except ValidationError as error:
        raise ValueError(f"{folder / MARKER} cannot be read: {describe(error)}") from None
    except ValueError as error:
        raise ValueError(f"{folder / MARKER} cannot be read: {flat(error):.300}") from None
    try:
        with safe_open(folder / TENSORS, "pt", device=str(device)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{folder / TENSORS} is not a safetensors file: {flat(error):.300}"
        ) from None
    model = _outline(folder, about)
    for name, layer in about.layers.items():
        try:
            model.set_submodule(name, _layer_of(about, layer, _taken(state, f"{name}.")))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / TENSORS}: layer {name!r:.100}: {flat(error):.200}"
            ) from None
    try:
        found = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder / TENSORS}: {flat(error):.300}") from None
    model.tie_weights()
    absent = [name for name, each in model.named_parameters() if each.is_meta]
    if absent or found.unexpected_keys:
        first, how = (absent[0], "lacks") if absent else (found.unexpected_keys[0], "also has")
        raise ValueError(f"{folder / TENSORS} {how} {first!r:.100}")
    return model.to(device).eval().requires_grad_(False)


def _name_of(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


def _outline(folder: Path, about: _Description) -> PreTrainedModel:
    """The model without its parameters; what it computes from its configuration is there."""
    named: Any = getattr(transformers, about.model_class, None)
    if not (isinstance(named, type) and issubclass(named, PreTrainedModel)):
        raise ValueError(
            f"{folder / MARKER}: {about.model_class!r:.80} is not a model class of transformers"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            return named(config)
    except Exception as error:  # transformers checks a configuration with errors of any kind
        raise ValueError(f"{folder / CONFIG}: {flat(error):.300}") from None


def _taken(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest, taken out of the state."""
    names = [name for name in state if name.startswith(start)]
    return {name.removeprefix(start): state.pop(name) for name in names}


def _layer_of(about: _Description, layer: _Layer, tensors: Mapping[str, Tensor]) -> PackedLinear:
    """A packed layer from what is stored of it."""
    space = get_space(about.space)
    stored = {n.removeprefix(STORED): t for n, t in tensors.items() if n.startswith(STORED)}
    choice, dtype = space.from_rows([layer.row])[0], getattr(torch, layer.dtype)
    quantized = space.assemble(stored, choice, layer.shape, dtype)
    left, right, bias = (tensors.get(name) for name in ("left", "right", "bias"))
    out, width = layer.shape[::-1] if layer.transposed else layer.shape
    wanted = [(left, 0, out), (right, 1, width), (bias, 0, out)]
    if any(part is not None and part.shape[axis] != size for part, axis, size in wanted):
        raise ValueError("its factors or its bias do not fit its weight")
    return PackedLinear(quantized, space.name, layer.row, layer.transposed, left, right, bias)
