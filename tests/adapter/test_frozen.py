"""A frozen model computes what the adapted one does, is small, and survives files and moves."""

import json

import pytest
import torch

from coalora_lib.adapter import CoaLora, OrderedFit, PackedLinear, load_frozen, save_frozen
from coalora_lib.adapter.frozen import MARKER, TENSORS
from coalora_lib.files import seal, unseal
from coalora_lib.spaces import get_space
from tests.adapter.test_ordered import each_codes
from tests.conftest import some_means, tiny
from tests.spaces.toy import ROUNDING

IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
#: How the adapter is made: a network with a shift and corrections, a frozen term, neither.
WAYS = {
    "network": {"output_bias": True, "bias_correction": True},
    "residual": {"start": "residual", "frozen_rank": 2, "adjuster": "none"},
    "plain": {"adjuster": "none"},
}


def adapted(kind="llama", way="network", space="nf", **options):
    """A model whose adapter does something, under an allocated configuration."""
    base = tiny(kind)
    given = dict(WAYS[way], **options)
    if given.get("bias_correction"):
        given["mean_inputs"] = some_means(base)
    model = CoaLora.attach(base, rank=4, alpha=8, space=space, **given)
    torch.manual_seed(1)
    for each in model.layers.factors():
        torch.nn.init.normal_(each.l1.data, std=0.2)
    for parameter in model.adjuster.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    model.set_configuration(9.0 if space == "gguf" else 3.3)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device)).logits.float().cpu()


def packed(model):
    return {n: each for n, each in model.named_modules() if isinstance(each, PackedLinear)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "qwen2"])
def test_it_computes_the_same_before_and_after_a_file(kind, way, tmp_path):
    model = adapted(kind, way)
    wanted = logits(model)
    frozen = model.freeze()
    assert packed(frozen).keys() == set(model.layer_names)
    torch.testing.assert_close(logits(frozen), wanted, atol=2e-5, rtol=1e-4)
    read = load_frozen(save_frozen(frozen, tmp_path / "frozen"))
    assert type(read) is type(frozen)
    torch.testing.assert_close(logits(read), logits(frozen), atol=0, rtol=0)
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)  # left as it was


@pytest.mark.parametrize("space", ["int", "gguf"])
def test_every_space_that_can_be_read_is(space, tmp_path):
    model = adapted("bert", "plain", space)
    frozen = model.freeze()
    torch.testing.assert_close(logits(frozen), logits(model), atol=2e-5, rtol=1e-4)
    read = load_frozen(save_frozen(frozen, tmp_path / "frozen"))
    torch.testing.assert_close(logits(read), logits(frozen), atol=0, rtol=0)


def test_its_memory_is_its_own():
    """Nothing that is written into it reaches the model that it was made of, or its cache."""
    model = adapted("bert", "residual")
    wanted, frozen = logits(model), model.freeze()
    with torch.no_grad():
        for tensor in (*frozen.parameters(), *frozen.buffers()):
            tensor.zero_()
    torch.testing.assert_close(logits(model), wanted, atol=0, rtol=0)
    again = model.freeze()
    torch.testing.assert_close(logits(again), wanted, atol=2e-5, rtol=1e-4)


@each_codes
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_another_configuration_and_what_was_fitted_for_it(kind, compensated, tmp_path):
    model = adapted(kind, "plain", heads=())
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    OrderedFit(model, batch, compensated=compensated).fit(model.resolve(2.5), rank=3)
    frozen = model.freeze(2.5)
    model.set_configuration(2.5)
    torch.testing.assert_close(logits(frozen), logits(model), atol=2e-5, rtol=1e-4)
    read = load_frozen(save_frozen(frozen, tmp_path / "frozen"))
    torch.testing.assert_close(logits(read), logits(frozen), atol=0, rtol=0)
    frozen = model.bfloat16().freeze(2.5)
    assert {each.weight.dtype for each in packed(frozen).values()} == {torch.bfloat16}
    torch.testing.assert_close(logits(frozen), logits(read), atol=0.1, rtol=0.1)


def test_a_decoder_generates_the_same(tmp_path):
    model = adapted("llama")
    frozen = load_frozen(save_frozen(model.freeze(), tmp_path / "frozen"))
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(input_ids=IDS[:1], **asked)
    assert torch.equal(frozen.generate(input_ids=IDS[:1], **asked), wanted)


def test_its_tensors_are_the_packed_ones_and_what_is_not_adapted():
    model = adapted("llama", "network")
    frozen = model.freeze()
    stored = sum(each.quantized.nbytes for each in packed(frozen).values())
    assert stored == sum(
        each.quantized.nbytes for each in model.layers.packed(model.configuration).values()
    )
    beside = sum(
        p.nbytes for n, p in frozen.named_parameters() if not n.startswith(tuple(packed(frozen)))
    )
    adapter = sum(p.nbytes for each in packed(frozen).values() for p in each.parameters())
    buffers = sum(b.nbytes for n, b in frozen.named_buffers() if "stored_" not in n)
    state = {id(t): t.nbytes for t in (*frozen.parameters(), *frozen.buffers())}
    assert sum(state.values()) == stored + beside + adapter + buffers
    assert not any(p.requires_grad for p in frozen.parameters())


def test_another_dtype_leaves_what_is_packed():
    frozen = adapted("llama").freeze()
    wanted, before = logits(frozen), {n: each.quantized for n, each in packed(frozen).items()}
    frozen.to(torch.bfloat16)
    for name, each in packed(frozen).items():
        for (_, now), (_, then) in zip(
            each.quantized.tensors(), before[name].tensors(), strict=True
        ):
            assert now.dtype == then.dtype
            assert torch.equal(now, then)
    assert frozen.dtype == torch.bfloat16
    torch.testing.assert_close(logits(frozen), wanted, atol=0.1, rtol=0.1)


def test_nothing_is_frozen_without_a_configuration():
    model = CoaLora.attach(tiny("bert"), rank=2)
    with pytest.raises(ValueError, match="no configuration is set or given"):
        model.freeze()
    with pytest.raises(ValueError, match="has no packed layers"):
        save_frozen(tiny("bert"), "anywhere")


@pytest.fixture
def folder(tmp_path):
    return save_frozen(adapted("bert", "plain").freeze(), tmp_path / "frozen")


def changed(folder, change):
    about = unseal((folder / MARKER).read_text())
    change(about)
    (folder / MARKER).write_text(seal(about))


def first(about):
    return next(iter(about["layers"].values()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / TENSORS).unlink(), r"model\.safetensors: no such file"),
        (lambda f: (f / TENSORS).write_bytes(b"x" * 50), "is not a safetensors file"),
        (lambda f: (f / MARKER).write_text("{}"), "was changed"),
        (lambda f: changed(f, lambda a: first(a).update(row=432)), "layer '"),
        (lambda f: changed(f, lambda a: first(a).update(row=-1)), "layer '"),
        (lambda f: changed(f, lambda a: first(a).update(shape=[8, 8])), "expected"),
        (lambda f: changed(f, lambda a: a["layers"].update(nowhere=first(a))), "nowhere"),
        (lambda f: changed(f, lambda a: a.update(space="none")), "none"),
        (lambda f: changed(f, lambda a: a.update(model_class="os")), "is not a model class"),
        (lambda f: changed(f, lambda a: a["layers"].popitem()), "also has|lacks"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json"),
    ],
    ids=["no tensors", "no file of tensors", "altered", "row", "negative", "shape", "name", "space",
         "class", "a layer less", "config"],
)  # fmt: skip
def test_what_is_damaged_is_one_clear_line(damage, message, folder):
    damage(folder)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_frozen(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_something_else_is_left(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    frozen = load_frozen(folder)
    with pytest.raises(FileExistsError, match="has no coalora_frozen"):
        save_frozen(frozen, tmp_path / "mine")
    assert json.loads((folder / MARKER).read_text())["space"] == get_space("nf").name


def test_a_space_whose_weights_no_file_gives_back_is_not_written(tmp_path):
    frozen = CoaLora.attach(tiny("llama"), rank=4, alpha=8, space=ROUNDING).freeze(5.0)
    with pytest.raises(ValueError, match="space 'rounding' has no method assemble"):
        save_frozen(frozen, tmp_path / "frozen")
    assert not (tmp_path / "frozen").exists()
