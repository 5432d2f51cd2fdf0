import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from coalora_lib.adapter import CoaLora, describe_layers
from coalora_lib.adapter.cache import WeightCache
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.adapter.quantized import QuantizedLinear
from coalora_lib.allocation import Constraints, error_table
from coalora_lib.quantization import BlockwiseChoice, quantize
from coalora_lib.spaces import NORMAL_FLOAT as NF
from coalora_lib.spaces import random_configuration
from tests.conftest import TINY, tiny

COARSE = BlockwiseChoice(2, 2, "bf16", 64, 256)
FINE = BlockwiseChoice(8, 8, "fp32", 16, 16)


def batch():
    return {"input_ids": torch.arange(6, 26).reshape(2, 10)}


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(**batch()).logits


def fill_lora(model):
    """Give the B factors values, so that the adapters do something."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


def test_all_linear_layers_in_blocks_and_no_others(base_model):
    names = adaptable_layers(base_model)
    assert len(names) == 12
    assert all(".layer." in name for name in names)


def test_attaching_changes_no_output(base_model):
    before = base_model.eval()(**batch()).logits
    model = CoaLora.attach(base_model, rank=4)
    torch.testing.assert_close(logits(model), before, atol=1e-12, rtol=0)
    assert model.bits is None


def test_weights_are_the_quantizers_and_biases_stay(model):
    inner = model.model.get_base_model()
    pretrained = {n: inner.get_submodule(n).base_layer for n in model.layer_names}
    weights = {n: layer.weight.clone() for n, layer in pretrained.items()}
    biases = {n: layer.bias.clone() for n, layer in pretrained.items()}
    configuration = random_configuration(12, torch.Generator().manual_seed(0))
    model.set_configuration(configuration)
    for name, config in zip(model.layer_names, configuration, strict=True):
        layer = inner.get_submodule(name).base_layer
        assert torch.equal(layer.weight, quantize(weights[name], config).dequantize())
        assert torch.equal(layer.bias, biases[name])
        assert layer.bias.abs().max() > 0


def test_forward_is_the_equation(model):
    fill_lora(model)
    configuration = [COARSE] * 12
    model.set_configuration(configuration)
    logits(model)
    adjustments = model.adjustments(configuration).matrix
    for name, adjustment in zip(model.layer_names, adjustments, strict=True):
        layer = model.model.get_base_model().get_submodule(name)
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        inputs = torch.randn(3, down.shape[1], dtype=torch.float64)
        correction = up @ (torch.eye(4) + adjustment) @ down
        expected = inputs @ (layer.base_layer.weight + 2.0 * correction).T + layer.base_layer.bias
        torch.testing.assert_close(layer(inputs), expected, atol=1e-10, rtol=0)


def test_zero_adjustment_is_plain_lora(model, base_model):
    shared = CoaLora.attach(base_model, rank=4, alpha=8, adjuster="none")
    nn.init.zeros_(model.adjuster.output.weight)
    shared.model.load_state_dict(model.model.state_dict())
    for each in (model, shared):
        torch.manual_seed(3)
        fill_lora(each)
        each.set_configuration([COARSE] * 12)
    assert torch.equal(logits(model), logits(shared))


def test_the_configuration_reaches_the_output_through_u(model):
    fill_lora(model)
    nn.init.normal_(model.adjuster.output.weight, std=0.5)
    model.set_configuration([FINE] * 12)
    fine = logits(model)
    with torch.no_grad():
        model._indices = NF.to_indices([COARSE] * 12)  # only U changes, no weight
        assert not torch.allclose(logits(model), fine)


def test_switching_back_gives_the_same_output(model):
    fill_lora(model)
    model.set_configuration([FINE] * 12)
    first = logits(model)
    model.set_configuration([COARSE] * 12)
    assert not torch.allclose(logits(model), first)
    model.set_configuration([FINE] * 12)
    assert torch.equal(logits(model), first)


def test_a_budget_is_allocated(model):
    model.set_configuration(3.0)
    assert 2.5 < model.bits <= 3.0


def test_gradients_reach_factors_hypernetwork_and_head_and_nothing_else(model):
    fill_lora(model)
    model.set_configuration([COARSE] * 12)
    model.train()
    model(**batch(), labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        trained = any(part in name for part in ("lora_", "adjuster", "modules_to_save"))
        assert (parameter.grad is not None) == trained, name


@pytest.mark.parametrize("wrong", [[COARSE] * 11, []], ids=["eleven", "none"])
def test_a_configuration_of_another_model_is_refused_and_nothing_changes(model, wrong):
    model.set_configuration([FINE] * 12)
    before = logits(model)
    with pytest.raises(ValueError, match=f"{len(wrong)} choices for 12 layers"):
        model.set_configuration(wrong)
    with pytest.raises(ValueError, match="not feasible"):
        model.set_configuration(1.5)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "wrong", ["3.1", True, 3j, {COARSE}, torch.tensor(3.0)], ids=lambda value: repr(value)[:9]
)
def test_what_is_no_configuration_is_shown_with_what_is_allowed(model, wrong):
    with pytest.raises(TypeError, match=r"(?s)is not a configuration; allowed: a budget"):
        model.set_configuration(wrong)
    assert model.configuration is None


@pytest.mark.parametrize("budget", [float("nan"), -1.0, 0])
def test_a_budget_that_no_configuration_meets_is_refused(model, budget):
    with pytest.raises(ValueError, match=r"smallest is 2\.0"):
        model.set_configuration(budget)


def test_numbers_of_numpy_are_budgets(model):
    model.set_configuration(np.float32(3.0))
    assert 2.5 < model.bits <= 3.0


def test_a_model_without_blocks_is_refused(base_model):
    base_model.bert.encoder.layer = nn.ModuleList()
    with pytest.raises(ValueError, match="no linear layer in numbered blocks"):
        CoaLora.attach(base_model)


def test_shared_lora_has_no_adjustments(base_model):
    with pytest.raises(ValueError, match="adjuster='none': there are no adjustments"):
        CoaLora.attach(base_model, adjuster="none").adjustments([COARSE] * 12)


def test_casting_the_model_casts_what_the_cache_hands_out(model):
    model.set_configuration([FINE] * 12)
    model.float()
    model.set_configuration([COARSE] * 12)
    assert logits(model).dtype == torch.float32


def layers(*weights, limit, **options):
    """Quantized layers over these weights, with one cache of so many bytes."""
    cache = WeightCache(limit)
    for weight in weights:
        linear = nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight.data = weight
        yield QuantizedLinear(linear, NF, cache, **options)
    yield cache


def test_cache_keeps_within_its_limit_and_lets_go_of_packed_weights_last():
    restored, packed = 8 * 8 * 4, FINE.nbytes(64)
    limit = 2 * restored + 3 * packed
    a, b, cache = layers(torch.randn(8, 8), torch.randn(8, 8), limit=limit)
    first = a.restored(FINE)
    assert a.restored(FINE) is first
    assert cache.held == restored + packed
    b.restored(FINE)
    a.restored(FINE)
    b.restored(COARSE)  # drops the weight of (b, FINE), used longest ago
    assert cache.held == 2 * restored + 2 * packed + COARSE.nbytes(64)
    assert a.restored(FINE) is first
    compact = b.packed(FINE)
    assert torch.equal(b.restored(FINE), compact.restore())
    assert b.packed(FINE) is compact
    assert cache.held <= cache.limit


def test_a_cache_of_no_size_still_hands_out_weights():
    layer, cache = layers(torch.randn(8, 8), limit=0)
    assert torch.equal(layer.restored(FINE), layer.restored(FINE))
    assert cache.held == 0


@pytest.mark.parametrize("frozen_rank", [0, 4])
def test_a_weight_of_another_dtype_is_rounded_once_and_held_beside(frozen_rank):
    weight, mean = torch.randn(32, 48), torch.randn(48)
    layer, cache = layers(weight, limit=2**20, frozen_rank=frozen_rank, mean_input=mean)
    low = layer.restored(COARSE, torch.bfloat16)
    plain = layer.restored(COARSE)
    assert plain.dtype == torch.float32
    assert torch.equal(low, plain.bfloat16())
    assert layer.restored(COARSE, torch.bfloat16) is low
    assert layer.restored(COARSE, torch.float32) is plain
    assert cache.held == low.nbytes + plain.nbytes + layer.packed(COARSE).nbytes
    torch.testing.assert_close(
        layer.correction_of(COARSE), (weight - plain) @ mean, rtol=0, atol=1e-4
    )


def test_a_frozen_residual_brings_every_weight_closer():
    weight = torch.randn(32, 48)
    plain, corrected = (
        next(layers(weight, limit=2**20, frozen_rank=rank)).restored(COARSE) for rank in (0, 8)
    )
    rest = weight - plain
    best = torch.linalg.svdvals(rest)[8:].square().sum().sqrt()
    assert torch.linalg.norm(weight - corrected) == pytest.approx(best.item(), rel=0.02)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_every_architecture_attaches_and_follows_the_configuration(kind):
    model = CoaLora.attach(tiny(kind), rank=4)
    assert set(describe_layers(model.layer_names).block_index.tolist()) == {0, 1}
    before = logits(model)
    model.set_configuration(3.0)
    assert not torch.allclose(logits(model), before)
    model.train()
    model(**batch()).logits.sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_svd_start_repairs_its_own_configuration(kind):
    base = tiny(kind).eval()
    with torch.no_grad():
        exact = base(**batch()).logits
    wrong = {}
    for start in ("zero", "svd"):
        model = CoaLora.attach(tiny(kind), rank=24, alpha=6, start=start, start_configuration=2.5)
        nn.init.zeros_(model.adjuster.output.weight)
        model.set_configuration(2.5)
        wrong[start] = float((logits(model) - exact).norm())
    assert wrong["svd"] < 0.5 * wrong["zero"]


def test_every_option_of_the_hypernetwork_works_for_several_configurations_at_once():
    model = CoaLora.attach(
        tiny("bert"), rank=4, error_features=True, learned_scale=True, output_bias=True
    )
    nn.init.normal_(model.adjuster.output.weight, std=0.5)
    generator = torch.Generator().manual_seed(0)
    several = [random_configuration(12, generator) for _ in range(3)]
    together = model.adjuster(torch.stack([NF.to_indices(each) for each in several]))
    assert together.matrix.shape == (3, 12, 4, 4)
    assert together.bias.shape == (3, 12, 4)
    for each, matrix, bias in zip(several, *together, strict=True):
        alone = model.adjustments(each)
        torch.testing.assert_close(alone.matrix, matrix)
        torch.testing.assert_close(alone.bias, bias)


def test_the_output_bias_is_added_between_the_factors(base_model):
    model = CoaLora.attach(base_model, rank=4, alpha=8, output_bias=True)
    fill_lora(model)
    nn.init.normal_(model.adjuster.output.weight, std=0.5)
    model.set_configuration([COARSE] * 12)
    logits(model)
    matrix, bias = model.adjustments([COARSE] * 12)
    layer = model.model.get_base_model().get_submodule(model.layer_names[2])
    inputs = torch.randn(3, 32, dtype=torch.float64)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    inside = inputs @ (down + matrix[2] @ down).T + bias[2]
    expected = layer.base_layer(inputs) + 2.0 * inside @ up.T
    torch.testing.assert_close(layer(inputs), expected)


def test_continuous_measures_are_what_they_say():
    model = CoaLora.attach(tiny("bert"), rank=4, error_features=True)
    configuration = random_configuration(12, torch.Generator().manual_seed(0))
    found = model.adjuster.encoder.measures(NF.to_indices(configuration))
    relative = []
    for name, config in zip(model.layer_names, configuration, strict=True):
        weight = model.pretrained_weights[name]
        rest = weight - quantize(weight, config).dequantize()
        relative.append((rest.square().sum() / weight.square().sum()).log10())
    order = torch.stack(relative).argsort()
    assert torch.equal(found[:, 0].argsort(), order)
    bits = torch.tensor([config.bits_per_parameter for config in configuration])
    assert torch.equal(found[:, 1].argsort(stable=True), bits.argsort(stable=True))
    assert found[:, 2].unique().numel() == 1


def test_a_device_or_names_may_stand_for_a_configuration(model):
    device = Constraints(allowed={"weight_bits": (4,)}, fixed={model.layer_names[0]: FINE})
    model.set_configuration(device)
    assert model.configuration[0] == FINE
    assert {config.weight_bits for config in model.configuration[1:]} == {4}
    model.set_configuration(dict.fromkeys(reversed(model.layer_names), COARSE))
    assert model.configuration == [COARSE] * 12
    model.set_configuration(Constraints(max_bytes=12_000))
    assert sum(c.nbytes(n) for c, n in zip(model.configuration, model.sizes, strict=True)) <= 12_000


def test_names_that_do_not_fit_are_named(model):
    named = dict.fromkeys(model.layer_names, COARSE)
    missing = {name: named[name] for name in model.layer_names[1:]}
    with pytest.raises(ValueError, match=f"lacks '{model.layer_names[0]}'"):
        model.set_configuration(missing)
    with pytest.raises(ValueError, match=r"this model has no layer 'h\.0\.attn'"):
        model.set_configuration(named | {"h.0.attn": COARSE})
    with pytest.raises(TypeError, match="4 is not a choice of the space"):
        model.set_configuration([4] * 12)
    assert model.configuration is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": float("inf")}, "alpha: Input should be a finite number"),
        ({"start": "random"}, "start"),
        ({"space": "fp"}, "space"),
        ({"space": ["nf"]}, r"space=\['nf'\] is not known"),
        ({"lora_dropout": 0.1}, "lora_dropout"),
        ({"errors": "given"}, "errors='given'; allowed: 'estimated', 'exact' or the table"),
        ({"errors": None}, "errors=None; allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_are_not_known_are_named(base_model, wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        CoaLora.attach(base_model, **wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_the_error_table_is_estimated_unless_all_weights_are_asked_for():
    def attached(**options):
        torch.manual_seed(0)
        sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 4, "vocab_size": 8}
        return CoaLora.attach(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), **options)

    model = attached()
    estimated = error_table(model.pretrained_weights, sample=True)
    assert torch.equal(model.errors, estimated)
    exact = attached(errors="exact").errors
    first = next(iter(model.pretrained_weights.values()))
    torch.testing.assert_close(exact[0], NF.errors(first))
    assert (estimated[0] != exact[0]).all()
    assert attached(errors=exact).errors is exact


def test_a_decoder_generates_under_the_current_configuration():
    model = CoaLora.attach(tiny("llama"), rank=4)
    nn.init.normal_(model.adjuster.output.weight, std=0.5)
    fill_lora(model)
    arguments = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    model.set_configuration([FINE] * 14)
    model.eval()
    tokens = model.generate(**batch(), **arguments)
    assert tokens.shape == (2, 14)
    expected = logits(model)[:, -1].argmax(-1)
    assert torch.equal(tokens[:, 10], expected)


def test_a_head_over_a_16_bit_model_is_trained_in_32_bits():
    model = CoaLora.attach(tiny("bert").bfloat16(), rank=4)
    trained = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    model.set_configuration([FINE] * 12)
    assert torch.isfinite(logits(model)).all()


def test_the_start_from_a_residual_takes_the_fewest_bits_that_a_space_has():
    model = CoaLora.attach(tiny("bert"), rank=4, start="svd", space="gguf")
    fewest = sum(
        model.space.allowed_bits(shape).min().item() * size
        for shape, size in zip(model.shapes, model.sizes, strict=True)
    ) / sum(model.sizes)
    assert fewest > 3.0  # so the 3.0 bits of other spaces are not to be had
    given = CoaLora.attach(
        tiny("bert"), rank=4, start="svd", space="gguf", start_configuration=fewest
    )
    for found, wanted in zip(model.layers.factors(), given.layers.factors(), strict=True):
        assert torch.equal(found.l1, wanted.l1)
        assert torch.equal(found.l2, wanted.l2)
    with pytest.raises(ValueError, match="not feasible"):
        model.resolve(fewest - 0.01)
