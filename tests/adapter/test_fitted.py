"""What was fitted for whole configurations is saved, read back, and follows the model about."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.files import SEAL, seal, sha256_of, unseal
from tests.adapter.test_export import attached, batch, logits
from tests.adapter.test_ordered import each_codes
from tests.adapter.test_saving import flipped, truncated
from tests.conftest import tiny

FITTED = "fitted.safetensors"
QUERY = "0.bert.encoder.layer.0.attention.self.query"
CODES = f"{QUERY}.quantized"


def fitted(kind="bert", compensated=True):
    """A model with something trained, and two configurations fitted; the first one is set."""
    model = attached(kind)
    for budget in (2.5, 4.0):
        OrderedFit(model, batch(), compensated=compensated).fit(budget, rank=3)
    model.set_configuration(2.5)
    return model


@pytest.fixture
def saved(tmp_path):
    return fitted().save_pretrained(tmp_path / "saved")


@each_codes
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_it_comes_back_with_the_same_outputs(kind, compensated, tmp_path):
    model = fitted(kind, compensated)
    folder = model.save_pretrained(tmp_path / "saved", quantized=True)
    again = CoaLora.from_pretrained(folder, tiny(kind))
    assert again.layers.fitted.keys() == model.layers.fitted.keys()
    for budget in (2.5, 4.0, 3.0):  # the last one was not fitted
        again.set_configuration(budget)
        model.set_configuration(budget)
        assert torch.equal(logits(again), logits(model))
    assert again.save_pretrained(folder) == folder  # its own folder, which it may replace


def test_it_is_used_at_once_where_that_configuration_was_set(saved):
    again = CoaLora.from_pretrained(saved, tiny("bert"))
    plain = attached("bert")
    plain.set_configuration(2.5)
    assert torch.equal(logits(again), logits(fitted()))
    assert not torch.equal(logits(again), logits(plain))


def test_a_folder_without_anything_fitted_has_no_such_file_and_older_ones_load(tmp_path):
    model = attached("bert")
    folder = model.save_pretrained(tmp_path / "saved")
    assert not (folder / FITTED).exists()
    content = unseal((folder / "coalora.json").read_text())
    older = {name: content[name] for name in content if not name.startswith("fitted")}
    assert len(older) == len(content) - 2
    (folder / "coalora.json").write_text(seal(older))
    assert CoaLora.from_pretrained(folder, tiny("bert")).layers.fitted == {}


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_damage_is_refused_with_the_files_name(saved, damage):
    damage(saved / FITTED)
    with pytest.raises(ValueError, match=r"fitted\.safetensors was changed"):
        CoaLora.from_pretrained(saved, tiny("bert"))


def test_a_missing_file_is_named(saved):
    (saved / FITTED).unlink()
    with pytest.raises(FileNotFoundError, match=r"fitted\.safetensors: no such file"):
        CoaLora.from_pretrained(saved, tiny("bert"))


def replaced(folder, change, **about):
    """A folder whose fitted tensors and description were changed, with checksums to match."""
    tensors = load_file(folder / FITTED)
    change(tensors)
    save_file(tensors, folder / FITTED)
    content = unseal((folder / "coalora.json").read_text())
    content |= {"fitted_sha256": sha256_of(folder / FITTED)} | about
    assert SEAL not in content
    (folder / "coalora.json").write_text(seal(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}.left"), rf"there is no tensor {QUERY}\.left"),
        (lambda t: t.update(other=torch.zeros(1)), "'other' is not a tensor of a fitted layer"),
        (
            lambda t: t.update({f"{QUERY}.left": torch.zeros(5, 3)}),
            rf"{QUERY}\.left is \(5, 3\) in torch\.float32; the layer needs \(32, 3\)",
        ),
        (
            lambda t: t.update({f"{QUERY}.right": torch.zeros(2, 32)}),
            rf"{QUERY}\.right is \(2, 32\)",
        ),
        (
            lambda t: t.update({f"{QUERY}.correction": torch.zeros(32).long()}),
            rf"{QUERY}\.correction is \(32,\) in torch\.int64",
        ),
        (lambda t: t.update({f"{QUERY}.left": torch.zeros(())}), rf"{QUERY}\.left is \(\)"),
        (lambda t: t.pop(f"{CODES}.codes"), rf"{CODES}\.codes is None, expected \(torch\.uint8"),
        (lambda t: t.pop(f"{CODES}.offset"), rf"{CODES}\.offset is None, expected"),
        (
            lambda t: t.update({f"{CODES}.codes": torch.zeros(5).byte()}),
            rf"{CODES}\.codes is \(torch\.uint8, \(5,\)\), expected",
        ),
        (
            lambda t: t.update({f"{CODES}.offset": torch.zeros(()).half()}),
            rf"{CODES}\.offset is \(torch\.float16",
        ),
        (
            lambda t: t.update({f"{CODES}.other": torch.zeros(1)}),
            rf"'{CODES}\.other' is not a tensor of a fitted layer",
        ),
        (
            lambda t: t.update({"0.elsewhere.quantized.codes": torch.zeros(1)}),
            r"'0\.elsewhere\.quantized\.codes' is not a tensor of a fitted layer",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith(f"{CODES}.")],
            "configuration 0 has codes for 11 layers; it was written with codes for 12",
        ),
        (
            lambda t: t[f"{QUERY}.left"].fill_(torch.nan),
            rf"{QUERY}\.left holds a number that is not finite",
        ),
    ],
    ids=[
        "missing",
        "foreign",
        "shape",
        "rank",
        "dtype",
        "scalar",
        "codes missing",
        "offset missing",
        "codes",
        "offset",
        "foreign part",
        "codes of another layer",
        "no codes",
        "nan",
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    replaced(saved, change)
    with pytest.raises(ValueError, match=rf"{saved}(: |/)fitted\.safetensors: {message}"):
        CoaLora.from_pretrained(saved, tiny("bert"))


def test_configurations_that_do_not_fit_are_named(tmp_path):
    saved = fitted(compensated=False).save_pretrained(tmp_path / "saved")
    for rows, message in (
        ([[0, 1]], r"coalora\.json cannot be read: a configuration of 2 choices"),
        ([[0] * 12], r"fitted\.safetensors: '1\..*' is not a tensor of a fitted layer"),
        ([[0] * 12] * 3, r"fitted\.safetensors: there is no tensor 2\."),
        ([], r"fitted\.safetensors belongs to it, but it names no fitted configuration"),
    ):
        about = [{"rows": each, "replaces": False} for each in rows]
        replaced(saved, dict, fitted=about)
        with pytest.raises(ValueError, match=message):
            CoaLora.from_pretrained(saved, tiny("bert"))


def test_without_a_checksum_it_is_not_read(saved):
    content = unseal((saved / "coalora.json").read_text())
    assert json.dumps(content["fitted_sha256"])
    (saved / "coalora.json").write_text(seal(content | {"fitted_sha256": None}))
    with pytest.raises(ValueError, match=r"fitted\.safetensors was changed"):
        CoaLora.from_pretrained(saved, tiny("bert"))


@each_codes
def test_it_follows_the_model_to_another_dtype_and_in_a_copy(compensated):
    model = fitted(compensated=compensated)
    expected = logits(model)
    twin = copy.deepcopy(model)
    wide = model.double()
    (states, _) = wide.layers.fitted.values()
    assert {p.dtype for s in states for p in (s.left, s.right, s.correction)} == {torch.float64}
    torch.testing.assert_close(logits(wide).float(), expected, atol=1e-4, rtol=0)
    wide.set_configuration(4.0)
    wide.set_configuration(2.5)  # made anew from what is fitted
    torch.testing.assert_close(logits(wide).float(), expected, atol=1e-4, rtol=0)
    assert torch.equal(logits(twin), expected)
    twin.set_configuration(None)
    twin.set_configuration(2.5)
    assert torch.equal(logits(twin), expected)


@each_codes
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_in_16_bits_what_was_fitted_is_not_rounded(kind, compensated):
    model = fitted(kind, compensated)
    before = [state.left for state in next(iter(model.layers.fitted.values()))]
    expected = logits(model)
    model.bfloat16()
    model.set_configuration(4.0)
    model.set_configuration(2.5)
    after = [state.left for state in next(iter(model.layers.fitted.values()))]
    assert all(a is b for a, b in zip(after, before, strict=True))
    torch.testing.assert_close(logits(model).float(), expected, atol=0.1, rtol=0)
    assert {each.dtype for each in model.merge().parameters()} == {torch.bfloat16}
    for packed in model.layers.packed(model.configuration).values():
        assert packed.quantized.dequantize().dtype == torch.bfloat16
    model.float().set_configuration(4.0)
    model.set_configuration(2.5)
    torch.testing.assert_close(logits(model), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_in_16_bits_a_fit_keeps_the_codes_that_it_was_made_over(kind):
    model = fitted(kind, compensated=False)

    def nearest():
        pairs = zip(model.layers.quantized.values(), model.configuration, strict=True)
        return [layer.plain(choice).quantized.codes for layer, choice in pairs]

    over = nearest()
    packed = model.bfloat16().layers.packed(model.configuration).values()
    assert all(torch.equal(each.quantized.codes, o) for each, o in zip(packed, over, strict=True))
    assert not all(map(torch.equal, nearest(), over))


def test_a_state_that_fits_the_model_stays_the_same_one():
    """What is restored from it is held under its identity."""
    model = fitted()
    before = list(model.layers.fitted.values())
    model.float().to("cpu")
    for one, other in zip(model.layers.fitted.values(), before, strict=True):
        assert all(a is b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("trained", [True, False])
def test_layers_of_other_ranks_are_exported(trained, tmp_path):
    """The keys and values of this model have 16 outputs, so that a rank of 20 is 16 there."""
    model = attached("qwen2")
    if not trained:  # then only what was fitted is exported
        for factors in model.layers.factors():
            torch.nn.init.zeros_(factors.l1)
    OrderedFit(model, batch(), spread=False).fit(2.5, rank=20)
    model.set_configuration(2.5)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    own = 4 if trained else 0
    assert settings["r"] == own + 20
    assert set(settings["rank_pattern"].values()) == {own + 16}
    assert len(settings["rank_pattern"]) == 4
    base = type(tiny("qwen2")).from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_follows_the_model_to_a_gpu():
    model = fitted()
    expected = logits(model)
    model.to("cuda").set_configuration(4.0)
    model.set_configuration(2.5)
    with torch.no_grad():
        found = model(**{name: value.cuda() for name, value in batch().items()}).logits
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)
