"""Pre-trained weights apart from the model: the same results, and files that are looked after."""

import copy
import gc
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.adapter.weights import MARKER, PretrainedWeight, keep
from tests.adapter.test_frozen import IDS, logits
from tests.adapter.test_ordered import each_codes
from tests.conftest import some_means, tiny

KINDS = pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])


@pytest.fixture
def checkpoint(tmp_path):
    """The folder of a tiny model, as transformers writes it."""

    def write(kind):
        tiny(kind).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return write


@pytest.fixture(params=["cpu", "disk", "folder", "checkpoint"])
def place(request, tmp_path, checkpoint):
    """Where a kind of model has its weights."""
    return lambda kind: {"folder": tmp_path / "new", "checkpoint": checkpoint(kind)}.get(
        request.param, request.param
    )


def attached(kind, pretrained="device", **options):
    torch.manual_seed(0)
    return CoaLora.attach(tiny(kind), rank=4, pretrained=pretrained, **options).eval()


def file_of(model):
    return next(iter(model.layers.quantized.values())).kept._source[0]


@KINDS
def test_results_do_not_depend_on_the_place(kind, place):
    options = {"start": "residual", "bias_correction": True, "mean_inputs": some_means(tiny(kind))}
    beside, apart = attached(kind, **options), attached(kind, place(kind), **options)
    for configuration in (None, 3.0, 4.5, None, 3.0):
        beside.set_configuration(configuration)
        apart.set_configuration(configuration)
        assert torch.equal(logits(apart), logits(beside))
    for one, other in zip(beside.merge().parameters(), apart.merge().parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(logits(apart.freeze()), logits(beside.freeze()))
    with apart.layers.static_memory(), beside.layers.static_memory():
        for configuration in (2.5, None):
            beside.set_configuration(configuration)
            apart.set_configuration(configuration)
            assert torch.equal(logits(apart), logits(beside))


@each_codes
def test_fits_do_not_depend_on_the_place(place, compensated):
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    found = []
    for where in ("device", place("bert")):
        model = attached("bert", where, adjuster="none", heads=())
        OrderedFit(model, batch, compensated=compensated).fit(3.0, rank=2)
        model.set_configuration(3.0)
        found.append(logits(model))
    assert torch.equal(*found)
    model.bfloat16().set_configuration(3.0)
    torch.testing.assert_close(logits(model), found[1], atol=0.1, rtol=0.1)


@KINDS
def test_a_saved_model_is_read_to_any_place(kind, place, tmp_path):
    model = attached(kind, place(kind))
    model.set_configuration(3.0)
    folder = model.save_pretrained(tmp_path / "saved")
    for where in ("device", "disk"):
        again = CoaLora.from_pretrained(folder, tiny(kind), pretrained=where)
        assert torch.equal(logits(again), logits(model))


def test_graphs_of_two_configurations_have_their_own_weights():
    """A switch makes new tensors: a backward that comes after it needs the old ones."""
    gradients = []
    for where in ("device", "disk"):
        model = attached("llama", where)
        losses = []
        for budget in (2.5, 4.0):
            model.set_configuration(budget)
            losses.append(model(input_ids=IDS, labels=IDS).loss)
        sum(losses).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_moved_model_reads_its_weights_in_its_new_dtype(place):
    model = attached("llama", place("llama"))
    model.set_configuration(3.0)
    expected = logits(model)
    model.to(torch.float64)
    assert {each.dtype for each in model.pretrained_weights.values()} == {torch.float64}
    model.set_configuration(3.0)
    torch.testing.assert_close(logits(model), expected)
    model.to(torch.float32)
    model.set_configuration(3.0)
    assert torch.equal(logits(model), expected)
    for layer in model.layers.quantized.values():
        assert layer.kept.held.dtype == torch.float32


def test_copies_share_the_file_which_goes_with_the_last():
    model = attached("bert", "disk")
    file = file_of(model)
    twin = copy.deepcopy(model)
    one, other = (next(iter(m.layers.quantized.values())).kept for m in (model, twin))
    assert one.held is other.held
    del model, one
    assert file.is_file()
    twin.set_configuration(3.0)
    del twin, other
    gc.collect()
    assert not file.parent.exists()


def test_a_pickle_maps_the_file_again_or_says_that_it_is_gone():
    model = attached("bert", "disk")
    stored, file = pickle.dumps(next(iter(model.layers.quantized.values())).kept), file_of(model)
    assert len(stored) < 1000
    again = pickle.loads(stored)
    assert torch.equal(again.read(), next(iter(model.pretrained_weights.values())))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no such file; it held a pre-trained weight"):
        pickle.loads(stored)


def test_nothing_is_written_to_a_checkpoint(checkpoint):
    folder = checkpoint("llama")
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    model = attached("llama", folder)
    model.set_configuration(3.0)
    with torch.no_grad():
        next(iter(model.layers.quantized.values())).kept.held.zero_()
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_a_folder_that_was_filled_is_read_the_next_time(tmp_path):
    attached("bert", tmp_path / "weights")
    assert (tmp_path / "weights" / MARKER).is_file()
    times = {each: each.stat().st_mtime_ns for each in (tmp_path / "weights").iterdir()}
    model = attached("bert", tmp_path / "weights")
    assert file_of(model).parent == tmp_path / "weights"
    assert times == {each: each.stat().st_mtime_ns for each in (tmp_path / "weights").iterdir()}


def another(file):
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    save_file(tensors | {name: tensors[name] + 1}, file)


def without(file):
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if not n.endswith("q_proj.weight")}, file)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (another, ValueError, r"has another weight for 'model\.layers\.0\.self_attn\.q_proj'"),
        (without, ValueError, r"has no weight for 'model\.layers\.0\.self_attn\.q_proj'"),
        (lambda f: f.write_bytes(b"x" * 40), ValueError, "is not a safetensors file"),
        (lambda f: f.rename(f.with_suffix(".bin")), FileExistsError, "has no coalora_pretrained"),
    ],
    ids=["another", "less", "damaged", "other things"],
)
def test_files_that_are_not_of_the_model_are_refused(change, error, message, checkpoint):
    folder = checkpoint("llama")
    change(folder / "model.safetensors")
    base = tiny("llama")
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(error, match=message):
        CoaLora.attach(base, pretrained=folder)
    assert [name for name, _ in base.named_modules()] == before


@pytest.mark.parametrize("wrong", ["ram", "", None, 3, True, "folder/of/mine"])
def test_another_place_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(ValueError, match="allowed: 'device', 'cpu', 'disk', or a Path"):
        keep({"layer": torch.ones(2, 2)}, wrong)


def test_a_weight_beside_the_model_is_the_models_own():
    weight = torch.randn(4, 4)
    kept = PretrainedWeight(weight)
    assert kept.read() is weight
    assert not kept.follow(lambda tensor: tensor)
    assert kept.follow(torch.Tensor.double)
    assert kept.read().dtype == torch.float64
