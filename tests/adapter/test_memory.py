"""How many bytes of tensors a model takes: exact counts, of storages and not of the process."""

import gc

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from coalora_lib.adapter import CoaLora, PackedLinear, load_frozen, save_frozen
from coalora_lib.adapter.cache import SHARE
from coalora_lib.spaces import NORMAL_FLOAT as NF

#: Small, but wide beside the rank of 2, as real models are beside a rank of 16.
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)
APART = ["cpu", "disk"]


def storages():
    """Bytes of every storage that a tensor refers to now, by its place."""
    gc.collect()
    tensors = [
        each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)
    ]
    return {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for each in tensors
        if each.device.type == "cpu"
    }


@pytest.fixture
def taken():
    """Bytes of tensors made in the test, but for the pre-trained weights that are apart."""
    before = storages()

    def count(model=None):
        kept = [] if model is None else [layer.kept for layer in model.layers.quantized.values()]
        apart = {each.held.untyped_storage().data_ptr() for each in kept if each.apart}
        found = storages()
        return sum(n for place, n in found.items() if place not in before and place not in apart)

    return count


def attach(place, base, **options):
    """With made-up errors, by which bits are allocated: to measure them takes seconds."""
    layers = 7 * base.config.num_hidden_layers
    errors = torch.rand(layers, 1, dtype=torch.float64) * 4.0 ** -NF.bits_table()
    return CoaLora.attach(base, rank=2, alpha=2, pretrained=place, errors=errors, **options)


def budgets(count):
    return torch.linspace(2.3, 5.0, count).tolist()


@pytest.mark.parametrize("place", APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apart_from_its_weights_a_model_takes_little_more_than_before(place, dtype, taken):
    base = LlamaForCausalLM(CONFIG).to(dtype)
    plain = taken()
    model = attach(place, base)
    model.set_configuration(3.0)
    assert taken(model) <= 1.15 * plain


@pytest.mark.parametrize("place", ["device", "disk"])
def test_memory_stays_within_a_bound_over_200_budgets(place, taken):
    base = LlamaForCausalLM(LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": 1}))
    plain = taken()
    model = attach(place, base)
    adapted = sum(model.sizes) * 4
    counts = []
    for budget in budgets(200):
        model.set_configuration(budget)
        counts.append(taken(model) if len(counts) % 20 == 19 else 0)
    most = 1.15 * plain if place in APART else 1.05 * plain + (1 + SHARE) * adapted
    assert max(counts) <= most
    assert model.layers.cache.held <= model.layers.cache.limit


def test_after_no_configuration_a_model_on_the_processor_reads_the_file(taken):
    base = LlamaForCausalLM(CONFIG)
    plain = taken()
    model = attach("disk", base, cache_bytes=0)
    assert taken(model) < 0.5 * plain  # the weights are in the file alone
    model.set_configuration(3.0)
    model.set_configuration(None)
    assert taken(model) < 0.5 * plain


def test_a_frozen_model_takes_what_is_packed_the_adapter_and_the_rest(taken, tmp_path):
    model = attach("disk", LlamaForCausalLM(CONFIG))
    model.set_configuration(3.0)
    frozen = model.freeze()
    packed = {n: m for n, m in frozen.named_modules() if isinstance(m, PackedLinear)}
    parts = sum(each.nbytes for each in (*frozen.parameters(), *frozen.buffers()))
    stored = sum(each.quantized.nbytes for each in packed.values())
    adapter = sum(p.nbytes for each in packed.values() for p in each.parameters())
    rest = sum(p.nbytes for n, p in frozen.named_parameters() if n.rpartition(".")[0] not in packed)
    save_frozen(frozen, tmp_path / "frozen")
    del model
    assert taken() <= 1.1 * (stored + adapter + rest)
    assert parts <= 1.1 * (stored + adapter + rest)
    del frozen, packed
    read = load_frozen(tmp_path / "frozen")
    assert taken() <= 1.1 * (stored + adapter + rest)
    with torch.no_grad():
        assert read(input_ids=torch.arange(8)[None]).logits.isfinite().all()
