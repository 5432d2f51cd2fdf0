"""What is wrong is said on one line that any terminal shows."""

import pytest
import torch
from pydantic import BaseModel, ValidationError

from coalora_lib.validation import SHOWN, check_number, describe, flat


class Sizes(BaseModel, extra="forbid"):
    layers: int


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" two\r\nlines\u2028 more ", "two lines more"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\0", r"\x00"),
        ("\ud800", r"\ud800"),
        ("é", "é"),
    ],
    ids=ascii,
)
def test_one_line(text, line):
    assert flat(text) == line


@pytest.mark.parametrize(
    "name", ["wide\nness", "\x1b[2J", "a" * 10_000], ids=lambda n: ascii(n[:9])
)
def test_a_field_and_a_value_are_named_on_one_line(name):
    with pytest.raises(ValidationError) as caught:
        Sizes(**{name: "x" * 10_000}, layers=1)
    said = describe(caught.value)
    assert said.startswith(flat(name)[: 2 * SHOWN])
    assert said.isprintable()
    assert len(said) < 5 * SHOWN


def test_a_value_of_many_lines_is_named_on_one():
    with pytest.raises(ValidationError) as caught:
        Sizes(layers=torch.zeros(40, 3))
    assert describe(caught.value).startswith("layers: Input should be a valid integer, got tensor(")
    assert len(describe(caught.value).splitlines()) == 1


def test_a_value_that_holds_one_many_times_over_is_named_in_no_time():
    value = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(ValidationError) as caught:
        Sizes(layers=value)
    assert "got [[[" in describe(caught.value)


@pytest.mark.parametrize(
    "value", [float("nan"), -1, 4, 10**400, -(10**400)], ids=lambda v: str(v)[:4]
)
def test_a_number_out_of_range_is_named(value):
    with pytest.raises(ValueError, match=r"rank=.* must be at (least 0|most 3)"):
        check_number("rank", value, 0, 3)


@pytest.mark.parametrize("value", [None, "1", True, 1j, [1]], ids=str)
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=r"rank=.* must be a number"):
        check_number("rank", value, 0)
    with pytest.raises(TypeError, match=r"rank=1.0 must be a whole number"):
        check_number("rank", 1.0, 0, whole=True)
