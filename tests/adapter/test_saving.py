import json

import pytest
import torch
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.allocation import error_table
from coalora_lib.files import seal, sha256_of, unseal
from coalora_lib.quantization import load_quantized
from coalora_lib.spaces import random_configuration
from tests.adapter.test_export import attached, logits
from tests.conftest import tiny


@pytest.fixture
def saved(tmp_path):
    """A folder, and the model that was saved in it."""
    model = attached("bert", start="residual", output_bias=True, error_features=True)
    generator = torch.Generator().manual_seed(0)
    model.training_set = [random_configuration(12, generator) for _ in range(3)]
    model.set_configuration(3.0)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", model


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "qwen2", "gpt2", "opt"])
def test_what_is_saved_comes_back(tmp_path, kind):
    model = attached(kind)
    model.set_configuration(3.0)
    model.save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(tmp_path / "saved", tiny(kind))
    assert again.configuration == model.configuration
    assert torch.equal(logits(again), logits(model))
    for budget in (2.5, 4.0):
        model.set_configuration(budget)
        again.set_configuration(budget)
        assert torch.equal(logits(again), logits(model))


def test_settings_training_set_and_errors_come_back(saved):
    folder, model = saved
    again = CoaLora.from_pretrained(folder, tiny("bert"))
    assert again.settings == model.settings
    assert again.training_set == model.training_set
    assert torch.equal(again.errors, model.errors)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("source", ["estimated", "exact", "given"])
def test_a_folder_says_where_the_error_table_is_from(tmp_path, source):
    errors = torch.rand(12, 432).double() if source == "given" else source
    model = attached("bert", errors=errors)
    model.set_configuration(3.0)
    folder = model.save_pretrained(tmp_path / "saved")
    assert json.loads((folder / "coalora.json").read_text())["settings"]["errors"] == source
    again = CoaLora.from_pretrained(folder, tiny("bert"))
    assert again.settings.errors == source
    assert torch.equal(again.errors, model.errors)


def test_a_table_that_was_not_measured_is_measured_as_it_would_have_been(tmp_path):
    folder = attached("bert", errors="exact").save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(folder, tiny("bert"))
    assert again.settings.errors == "exact"
    assert torch.equal(again.errors, error_table(again.pretrained_weights))


def test_the_base_model_is_found_by_its_name(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "base")
    base = type(tiny("llama")).from_pretrained(tmp_path / "base")
    model = CoaLora.attach(base, rank=4)
    model.set_configuration(2.5)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(CoaLora.from_pretrained(tmp_path / "saved")), logits(model))


def test_a_base_model_that_is_not_found_is_named(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries
    folder, _ = saved
    description = folder / "coalora.json"
    description.write_text(seal(unseal(description.read_text()) | {"base_name": "nobody/nothing"}))
    with pytest.raises(OSError, match=r"'nobody/nothing' of .* pass it as base_model"):
        CoaLora.from_pretrained(folder)


def test_packed_weights_are_written_if_asked_for(saved):
    folder, model = saved
    model.save_pretrained(folder, quantized=True)
    packed = load_quantized(folder / "quantized.safetensors")
    assert [tensor.choice for tensor in packed.values()] == model.configuration


def test_another_base_model_is_refused(saved):
    folder, _ = saved
    other = tiny("bert")
    nn.init.zeros_(other.bert.embeddings.LayerNorm.bias)
    for wrong, message in (
        (other, "the checksum differs"),
        (tiny("bert").double(), "dtype is float64; .* was saved over float32"),
        (tiny("roberta"), "class is RobertaForSequenceClassification"),
    ):
        with pytest.raises(ValueError, match=message):
            CoaLora.from_pretrained(folder, wrong)
        assert not any("lora" in name for name, _ in wrong.named_parameters())
    smaller = tiny("bert")
    del smaller.bert.encoder.layer[1]
    with pytest.raises(ValueError, match=r"layer\.1\.attention\.output\.dense differs"):
        CoaLora.from_pretrained(folder, smaller)


def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CoaLora.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"has no coalora\.json"):
        CoaLora.from_pretrained(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has no coalora\.json"):
        attached("bert").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, flipped])
@pytest.mark.parametrize("name", ["coalora.json", "coalora.safetensors"])
def test_damage_is_refused_with_the_files_name(saved, name, damage):
    folder, _ = saved
    damage(folder / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        CoaLora.from_pretrained(folder, tiny("bert"))


def test_a_missing_file_is_named(saved):
    folder, _ = saved
    (folder / "coalora.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"coalora\.safetensors"):
        CoaLora.from_pretrained(folder, tiny("bert"))


def test_a_choice_out_of_range_is_refused(saved):
    folder, _ = saved
    content = unseal((folder / "coalora.json").read_text())
    content["training_set"][0][0] = 432
    (folder / "coalora.json").write_text(seal(content))
    with pytest.raises(ValueError, match=r"choice 432 is outside 0\.\.431"):
        CoaLora.from_pretrained(folder, tiny("bert"))


def test_a_description_of_another_form_is_refused_in_one_line(saved):
    folder, _ = saved
    content = unseal((folder / "coalora.json").read_text())
    for changed in (content | {"settings": {"rank": []}}, content | {"layer_names": None}, {}):
        (folder / "coalora.json").write_text(seal(changed))
        with pytest.raises(ValueError, match=r"^.*coalora\.json cannot be read: [^\n]+$"):
            CoaLora.from_pretrained(folder, tiny("bert"))


def test_a_description_that_does_not_fit_its_tensors_is_named(saved):
    folder, _ = saved
    content = unseal((folder / "coalora.json").read_text())
    for changed, message in (
        ({"training_set": [[0, 1]]}, r"coalora\.json cannot be read: a configuration of 2 choices"),
        ({"settings": content["settings"] | {"rank": 2**20}}, r"is not of rank 1048576"),
        ({"settings": content["settings"] | {"rank": 2**40}}, r"settings\.rank: Input should be"),
        ({"settings": content["settings"] | {"hidden": 7}}, rf"{folder}: coalora\.safetensors: "),
    ):
        (folder / "coalora.json").write_text(seal(content | changed))
        with pytest.raises(ValueError, match=message):
            CoaLora.from_pretrained(folder, tiny("bert"))


@pytest.mark.parametrize("changed", [{"hidden_size": "x"}, {"model_type": 7}, {"vocab_size": 63}])
def test_a_configuration_that_no_base_can_be_made_from_is_named(tmp_path, changed):
    tiny("bert").save_pretrained(tmp_path / "base")
    base = type(tiny("bert")).from_pretrained(tmp_path / "base")
    folder = CoaLora.attach(base, rank=4).save_pretrained(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    content = unseal((folder / "coalora.json").read_text())
    content["config_sha256"] = sha256_of(folder / "config.json")
    (folder / "coalora.json").write_text(seal(content))
    message = rf"cannot be made from {folder}/config\.json: [^\n]+$"
    with pytest.raises(ValueError, match=message):
        CoaLora.from_pretrained(folder)


def test_saving_that_fails_keeps_what_was_there(saved, monkeypatch):
    folder, model = saved
    before = (folder / "coalora.safetensors").read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("coalora_lib.adapter.saving.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert (folder / "coalora.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]
