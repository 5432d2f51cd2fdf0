"""A device's description: its memory, and the choices that it can run."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import Constraints
from coalora_lib.gguf import Options
from coalora_lib.validation import describe, did_you_mean, flat, nearest


class Device(BaseModel):
    """What a device can hold and run.

    .. code-block:: yaml

        bytes: 6MB                    # of the quantized layers; or bits: 3.1, or both
        size: 16MB                    # of base.gguf as a whole, where GGUF is written
        allowed:                      # fields of the space to the values it can run
          weight_bits: [4, 8]         # of the space gguf: type: [Q4_0, Q8_0]
        fixed:                        # layers to all fields of their choice
          encoder.layer.0.output.dense: {weight_bits: 8, scale_bits: 8, ...}
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bits: float | None = Field(None, gt=0)
    bytes: ByteSize | None = None
    size: ByteSize | None = None
    allowed: dict[str, list[Any]] | None = None
    fixed: dict[str, dict[str, Any]] | None = None

    def constraints(
        self,
        model: CoaLora,
        gguf: Options | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Constraints:
        """The same for a model's layers.

        Args:
            model: whose layers.
            gguf: how its GGUF file is to be written, which ``size`` is of.
            tokenizer: the model's, which is a part of that file.

        Raises:
            ValueError: a fixed layer or a field of its choice is not known or missing; or there is
                a size and no GGUF file.
        """
        limits = []
        if self.size is not None:
            if gguf is None:
                raise ValueError(
                    f"size: {self.size} is of a GGUF file, and none is written; give bytes, of the "
                    "quantized layers"
                )
            limits = [model.gguf_size_limit(self.size, tokenizer, **vars(gguf))]
        fixed: dict[str | int, Any] = {}
        for layer, fields in (self.fixed or {}).items():
            if layer not in model.layer_names:
                raise ValueError(
                    f"fixed: {layer!r} is not a layer of the model{_near(layer, model)}"
                )
            if set(fields) != set(model.space.fields):
                raise ValueError(
                    f"fixed: {layer} has the fields {', '.join(map(repr, fields))}; needed: "
                    f"{', '.join(model.space.fields)}"
                )
            fixed[layer] = model.space.make_choice(*(fields[name] for name in model.space.fields))
        return Constraints(self.bits, self.allowed, fixed or None, self.bytes, limits)


def _near(layer: str, model: CoaLora) -> str:
    near = nearest(layer, model.layer_names)
    return "" if near is None else f"; the nearest is {near!r}"


def read_device(path: str | Path) -> Device:
    """Read a description from a YAML or JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a description; the field is named.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {flat(error):.200}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no fields; allowed: {', '.join(Device.model_fields)}")
    for name in content:
        if name not in Device.model_fields:
            hint = did_you_mean(name, Device.model_fields)
            raise ValueError(
                f"{path}: {name!r:.80} is not known{hint}; allowed: "
                f"{', '.join(Device.model_fields)}"
            )
    try:
        return Device.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error)}") from None
