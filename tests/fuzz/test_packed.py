"""Packed weights: codes as handed over, and files of them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from coalora_lib.quantization import load_quantized, quantize, save_quantized
from coalora_lib.quantization.storage import FORMAT
from coalora_lib.spaces import GGUF, INTEGER, NORMAL_FLOAT
from tests.fuzz.documents import JUNK, broken_json, broken_safetensors
from tests.fuzz.judge import inputs, judge


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of two tensors: its bytes, its tensors and what it says of them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("packed") / "weights.safetensors"
    spaces = {"a": NORMAL_FLOAT.choices[40], "b": INTEGER.choices[7]}
    save_quantized(path, {n: quantize(torch.randn(33, 5), c) for n, c in spaces.items()})
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return path.read_bytes(), tensors, file.metadata()["tensors"]


def read(path):
    """All of a file, and each tensor as a weight."""
    for tensor in load_quantized(path).values():
        tensor.dequantize()


@inputs(50)
@given(data=st.data())
def test_files(data, stored, fresh):
    path = fresh() / "weights.safetensors"
    path.write_bytes(data.draw(broken_safetensors(stored[0])))
    judge("packed weights", lambda: read(path), [path], path.parent)


@inputs(50)
@given(data=st.data())
def test_what_a_file_says_of_its_tensors(data, stored, fresh):
    path = fresh() / "weights.safetensors"
    about = data.draw(broken_json(json.loads(stored[2])))
    save_file(stored[1], path, {"format": FORMAT, "tensors": about.decode(errors="replace")})
    judge("packed weights", lambda: read(path), [path], path.parent)


WEIGHTS = st.one_of(
    JUNK,
    st.sampled_from(["f", "d", "e", "i", "?", "F"]).map(lambda kind: np.ones((4, 8), kind)),
    st.builds(
        lambda shape, value, dtype: torch.full(shape, value, dtype=torch.float64).to(dtype),
        st.sampled_from([(4, 8), (0, 8), (), (32,), (2, 3, 4)]),
        st.sampled_from([0.0, 1.0, 1e38, 1e300, 5e-324, float("nan"), float("inf")]),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    ),
    st.builds(torch.ones, st.just((4, 8)), dtype=st.sampled_from([torch.int64, torch.bool])),
)
CHOICES = st.sampled_from(NORMAL_FLOAT.choices + INTEGER.choices) | JUNK


@inputs(40)
@given(WEIGHTS, CHOICES)
def test_weights_and_choices(weight, choice):
    judge("packed weights", lambda: quantize(weight, choice).dequantize())


@inputs(40)
@given(WEIGHTS, st.sampled_from(GGUF.choices))
def test_weights_and_types_of_gguf(weight, choice):
    found = judge("packed weights", lambda: GGUF.quantize(weight, choice).dequantize())
    assert found is None or found.isfinite().all()
