"""A device's description: what it can hold and run."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import Constraints
from coalora_lib.validation import describe, did_you_mean, flat, nearest


class Device(BaseModel):
    """What a device can hold and run.

    .. code-block:: yaml

        bytes: 6MB                    # of the quantized layers; or bits: 3.1, or both
        allowed:                      # fields of the space to the values it can run
          weight_bits: [4, 8]
        fixed:                        # layers to all fields of their choice
          encoder.layer.0.output.dense: {weight_bits: 8, scale_bits: 8, ...}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: float | None = Field(None, gt=0)
    bytes: ByteSize | None = None
    allowed: dict[str, list[Any]] | None = None
    fixed: dict[str, dict[str, Any]] | None = None

    def constraints(self, model: CoaLora) -> Constraints:
        """The same for a model's layers.

        Raises:
            ValueError: a fixed layer or a field of its choice is not known or missing.
        """
        fixed: dict[str | int, Any] = {}
        for layer, fields in (self.fixed or {}).items():
            if layer not in model.layer_names:
                raise ValueError(f"fixed: {layer!r} is no layer of the model{_near(layer, model)}")
            if set(fields) != set(model.space.fields):
                raise ValueError(
                    f"fixed: {layer} has the fields {', '.join(map(repr, fields))}; needed: "
                    f"{', '.join(model.space.fields)}"
                )
            fixed[layer] = model.space.make_choice(*(fields[name] for name in model.space.fields))
        return Constraints(self.bits, self.allowed, fixed or None, self.bytes)


def _near(layer: str, model: CoaLora) -> str:
    near = nearest(layer, model.layer_names)
    return "" if near is None else f"; the nearest is {near!r}"


def read_device(path: str | Path) -> Device:
    """Read a description from a YAML or JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no description; the field is named.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {flat(error):.200}") from None
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
