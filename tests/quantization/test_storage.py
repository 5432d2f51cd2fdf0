import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from coalora_lib.quantization import load_quantized, quantize, save_quantized
from coalora_lib.spaces import INTEGER, NORMAL_FLOAT


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(NORMAL_FLOAT.choices + INTEGER.choices),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_round_trip(tmp_path_factory, config, dtype):
    path = tmp_path_factory.mktemp("stored") / "weights.safetensors"
    tensors = {
        "layer.0": quantize(torch.randn(33, 7).to(dtype), config),
        "layer.1": quantize(torch.randn(5).to(dtype), config),
    }
    assert save_quantized(path, tensors) == path
    loaded = load_quantized(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].dequantize(), tensor.dequantize())
        assert loaded[name].dtype == dtype
        assert loaded[name].nbytes == tensor.nbytes


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "weights.safetensors"
    return save_quantized(path, {"a": quantize(torch.randn(64, 64), NORMAL_FLOAT.choices[40])})


def test_a_failed_write_leaves_the_old_file(stored, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    before = stored.read_bytes()
    monkeypatch.setattr("coalora_lib.quantization.storage.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_quantized(stored, {})
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing here"):
        load_quantized(tmp_path / "nothing here")


def test_a_truncated_file_is_refused(stored):
    stored.write_bytes(stored.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a whole safetensors file"):
        load_quantized(stored)


def test_another_kind_of_file_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold quantized tensors"):
        load_quantized(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"shape": [64, 64]', '"shape": [64, 65]', "tensor a is damaged: codes is"),
        ('"weight_bits": 2', '"weight_bits": 5', "tensor a is damaged: weight_bits=5"),
        ('"code_book": "nf"', '"code_book": "fp"', "tensor a is damaged: code_book='fp'"),
        ('"dtype": "float32"', '"dtype": "uint8"', "a.dtype: Input should be 'float16'"),
        ('{"a": ', '{"b": ', "tensor b is damaged"),
        ('"weight_bits"', '"a b\\u001b"', r"tensor a is damaged: .*unexpected keyword"),
        ('{"a": ', "", "its description of the tensors: the file: Invalid JSON"),
        ('{"a": {', '{"a": 7, "b": {', "its description of the tensors: a: Input should be"),
        ("[64, 64]", "[64.0, 64]", r"a\.shape\.0: Input should be a valid integer"),
        ("[64, 64]", "[-64, -64]", r"a\.shape\.0: Input should be greater"),
    ],
    ids=[
        "shape",
        "choice",
        "code-book",
        "dtype",
        "name",
        "field",
        "json",
        "entry",
        "float",
        "negative",
    ],
)
def test_altered_metadata_is_refused(stored, old, new, message):
    with safe_open(stored, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert old in metadata["tensors"]
    metadata["tensors"] = metadata["tensors"].replace(old, new)
    save_file(tensors, stored, metadata)
    with pytest.raises(ValueError, match=message):
        load_quantized(stored)
