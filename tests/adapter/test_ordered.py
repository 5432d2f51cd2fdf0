"""Fits in the layers' order: against loops over layers, part by part, and what they leave alone."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from coalora_lib.adapter import CoaLora, OrderedFit
from coalora_lib.adapter.ordered import (
    DRAWS,
    METRIC_RIDGE,
    SHRINKAGE,
    SPREAD,
    _spread_ranks,
    unquantized,
)
from coalora_lib.calibration import RIDGE, reduced_rank_regression, ridge_factor
from coalora_lib.kinds import kind_of
from coalora_lib.quantization import BlockwiseChoice, load_quantized
from coalora_lib.training.batches import collate
from tests.adapter.test_calibrated import COARSE, QUERY, coarse, entered, outputs
from tests.conftest import tiny, tiny_bert
from tests.spaces.toy import ROUNDING

PLAIN = {"residuals": False, "weighted": False, "spread": False}
each_codes = pytest.mark.parametrize("compensated", [False, True], ids=["nearest", "compensated"])
#: By hand, from the models' forward: what the output of a layer is added to is what enters this.
RESIDUALS = {
    "bert": {
        "attention.output.dense": "attention.self.query",
        "output.dense": "intermediate.dense",
    },
    "llama": {
        "self_attn.o_proj": "input_layernorm",
        "mlp.down_proj": "post_attention_layernorm",
    },
}


def attached(kind="bert", dtype=torch.float64, **options):
    """With weights so large that what the model says depends on the tokens."""
    config = tiny(kind).config
    config.initializer_range = 0.3
    torch.manual_seed(0)
    return CoaLora.attach(type(tiny(kind))(config).to(dtype), rank=4, alpha=8, **options).eval()


def tokens(count=60, length=12, seed=0):
    """A batch without padding."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 60, (count, length), generator=generator)}


@torch.no_grad()
def divergence(model, configuration, batch):
    """Of what the model says from what it says unquantized, LoRA off; the configuration is set."""
    kind = kind_of(model.get_base_model())
    with unquantized(model):
        target = kind.outcome(model(**batch), batch)
    model.set_configuration(configuration)
    with model.disable_adapter():
        return kind.divergence(kind.outcome(model(**batch), batch), target).item()


def numbers(fitted):
    """Of the factors, over all layers."""
    return sum(state.left.numel() + state.right.numel() for state in fitted)


def residual_of(kind, name):
    """The module whose inputs are the residual of a layer, by name; None of a layer without."""
    for end, other in sorted(RESIDUALS[kind].items(), key=lambda pair: -len(pair[0])):
        if name.endswith(end):
            return name.removesuffix(end) + other
    return None


@pytest.mark.parametrize(
    ("residuals", "compensated"),
    [(False, False), (True, False), (True, True)],
    ids=["outputs", "residuals", "compensated"],
)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_is_a_loop_over_layers(kind, residuals, compensated, examples):
    """The reference: for each layer in turn, both models run as they are so far."""
    model = CoaLora.attach(tiny(kind).double(), rank=4, alpha=8)
    for example in examples:
        del example["labels"]
    configuration = coarse(model)
    parts = PLAIN | {"residuals": residuals, "compensated": compensated}
    OrderedFit(model, collate(examples, 0), **parts).fit(configuration, 2)
    fitted = model.layers.fitted[tuple(configuration)]
    base, whole = tiny(kind).double().eval(), tiny(kind).double().eval()
    added_to = 0
    for name, found in zip(model.layer_names, fitted, strict=True):
        layer, target = base.get_submodule(name), whole.get_submodule(name)
        x, e = entered(base, name, examples), entered(whole, name, examples) @ target.weight.T
        centred = x - x.mean(0)
        ridge = RIDGE + SHRINKAGE * x.shape[1] / len(x)
        factor = ridge_factor(centred.T @ centred / len(x), ridge)
        quantized = model.space.quantize(target.weight, COARSE)
        if compensated:
            quantized = model.space.quantize_for_inputs(target.weight, COARSE, factor)
        layer.weight.data = quantized.dequantize()
        e = e - x @ layer.weight.T  # the biases are the same
        if residuals and (other := residual_of(kind, name)):
            e = e + entered(whole, other, examples) - entered(base, other, examples)
            added_to += 1
        cross = (e - e.mean(0)).T @ centred / len(x)
        left, right, _ = reduced_rank_regression(cross, factor, 2)
        kept = left @ right
        torch.testing.assert_close(found.left @ found.right, kept, atol=1e-5, rtol=1e-3)
        layer.weight.data = layer.weight.data + kept
        bias = e.mean(0) - kept @ x.mean(0)
        layer.bias = torch.nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    assert added_to == (4 if residuals else 0)
    model.set_configuration(configuration)
    torch.testing.assert_close(outputs(model, examples), outputs(base, examples), atol=1e-4, rtol=0)


def test_the_metric_is_the_gram_matrix_of_gradients(examples):
    """By brute force: text by text, without padding, through the real bias of a layer."""
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    fit = OrderedFit(model, collate(examples, 0), seed=3)
    base = tiny_bert().eval()
    logits = torch.cat([base(input_ids=e["input_ids"][None]).logits for e in examples]).detach()
    generator = torch.Generator().manual_seed(3)
    by_length = torch.tensor([len(e["input_ids"]) for e in examples]).argsort(stable=True)
    draws = torch.empty(DRAWS, len(examples))
    for draw in draws:
        draw[by_length] = torch.rand(
            len(examples), generator=generator, dtype=torch.float64
        ).float()
    for name in (QUERY, "bert.encoder.layer.1.output.dense"):
        total = 0
        for row, example in enumerate(examples):
            kept = []
            handle = base.get_submodule(name).register_forward_hook(
                lambda *given, kept=kept: kept.append(given[-1]) or given[-1]
            )
            logs = base(input_ids=example["input_ids"][None]).logits.log_softmax(-1)[0]
            handle.remove()
            for draw in draws:
                chosen = int(draw[row] > logits[row].softmax(-1)[0])
                (gradient,) = torch.autograd.grad(logs[chosen], kept, retain_graph=True)
                total = total + gradient[0].T @ gradient[0]
        torch.testing.assert_close(fit.metrics[name], ridge_factor(total, METRIC_RIDGE))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "qwen2"])
def test_spread_ranks_take_no_more_numbers_than_even_ones(kind):
    model, batch = attached(kind), tokens()
    configuration = coarse(model)
    fitted = []
    for spread in (False, True):
        OrderedFit(model, batch, spread=spread).fit(configuration, rank=4)
        fitted.append(model.layers.fitted[tuple(configuration)])
    ranks = [state.left.shape[1] for state in fitted[1]]
    assert {state.left.shape[1] for state in fitted[0]} == {4}
    assert len(set(ranks)) > 1
    assert min(ranks) >= 1
    assert max(ranks) <= SPREAD * 4
    smallest = min(sum(layer.pretrained.shape) for layer in model.layers.quantized.values())
    assert numbers(fitted[0]) - smallest * len(ranks) < numbers(fitted[1]) <= numbers(fitted[0])


@pytest.mark.parametrize("shapes", [[(3, 5)] * 3, [(3, 5), (5, 11), (3, 5)]], ids=["alike", "not"])
def test_numbers_go_where_they_gain_most(shapes):
    """Against all ways to spread them; of unequal layers the last number may find no place."""
    gains = {"a": [9.0, 2.0, 1.0], "b": [8.0, 7.0, 6.5], "c": [3.0, 2.5, 0.1]}
    layers = {
        name: SimpleNamespace(kept=torch.empty(shape))
        for name, shape in zip(gains, shapes, strict=True)
    }
    costs = [sum(shape) for shape in shapes]
    given = {name: torch.tensor(each) for name, each in gains.items()}
    found = _spread_ranks(SimpleNamespace(quantized=layers), given, dict.fromkeys(gains, 2))

    def gained(ranks):
        return sum(sum(each[:rank]) for each, rank in zip(gains.values(), ranks, strict=True))

    def cost(ranks):
        return sum(c * rank for c, rank in zip(costs, ranks, strict=True))

    allowed = [r for r in itertools.product((1, 2, 3), repeat=3) if cost(r) <= 2 * sum(costs)]
    assert tuple(found.values()) in allowed
    best = max(map(gained, allowed))
    assert gained(found.values()) == best


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_each_part_brings_the_model_closer_on_other_texts(kind):
    model, batch, others = attached(kind), tokens(300), tokens(200, seed=9)
    configuration = coarse(model)
    found = [divergence(model, configuration, others)]
    for parts in (PLAIN, PLAIN | {"residuals": True}, {"spread": False}, {}):
        OrderedFit(model, batch, **parts).fit(configuration, rank=8)
        found.append(divergence(model, configuration, others))
    plain, outputs_alone, residuals, weighted, spread = found
    assert plain > outputs_alone > residuals > weighted
    assert spread < 1.1 * weighted  # of two classes, few draws say little of where ranks are due
    assert spread < 0.8 * outputs_alone


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_codes_for_inputs_bring_it_nearer_where_inputs_go_together(kind):
    """As those of a trained model do: embeddings lie along few directions."""
    model, batch, others = attached(kind), tokens(300), tokens(200, seed=9)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        directions = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
        sizes = 2 / torch.arange(1, 33, dtype=torch.float64)
        embeddings.copy_(embeddings * sizes @ directions)
    configuration = [BlockwiseChoice(3, 4, "bf16", 32, 256)] * len(model.layer_names)
    found = []
    for compensated in (False, True):
        OrderedFit(model, batch, compensated=compensated).fit(configuration, rank=2)
        found.append(divergence(model, configuration, others))
    nearest, compensated = found
    assert compensated < 0.8 * nearest


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "qwen2", "gpt2", "opt"])
def test_it_brings_every_architecture_closer(kind):
    model, batch = attached(kind), tokens()
    configuration = coarse(model)
    before = divergence(model, configuration, batch)
    OrderedFit(model, batch).fit(configuration, rank=8)
    assert divergence(model, configuration, batch) < 0.5 * before


@each_codes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_in_16_bits_it_fits_in_32(dtype, compensated):
    model, batch = attached("llama", dtype), tokens(300)
    configuration = coarse(model)
    before = divergence(model, configuration, batch)
    OrderedFit(model, batch, compensated=compensated).fit(configuration, rank=8)
    fitted = model.layers.fitted[tuple(configuration)]
    assert {p.dtype for s in fitted for p in (s.left, s.right, s.correction)} == {torch.float32}
    assert divergence(model, configuration, batch) < 0.5 * before


def test_what_a_language_model_needs_of_memory_is_small():
    """Targets in its own dtype, and no logits in a fit."""
    model = attached("llama", torch.bfloat16)
    fit = OrderedFit(model, tokens())
    kept = [*fit.aims.outputs.values(), *fit.aims.residuals.values()]
    assert {each.dtype for each in kept} == {torch.bfloat16}
    called = []
    model.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    fit.fit(coarse(model))
    assert not called


@each_codes
def test_inputs_that_are_always_zero_or_never_change_are_no_special_case(compensated):
    model, batch = attached(), tokens(300)
    first, second = model.get_base_model().bert.encoder.layer
    with torch.no_grad():
        first.attention.output.LayerNorm.weight[:12] = 0  # of them four always zero
        first.attention.output.LayerNorm.bias[4:12] = 2
        second.attention.output.LayerNorm.weight.zero_()  # a layer that is always given the same
        second.attention.output.LayerNorm.bias.normal_()
    configuration = coarse(model)
    before = divergence(model, configuration, batch)
    OrderedFit(model, batch, compensated=compensated).fit(configuration, rank=4)
    for state in model.layers.fitted[tuple(configuration)]:
        assert all(torch.isfinite(p).all() for p in (state.left, state.right, state.correction))
    assert divergence(model, configuration, batch) < 0.1 * before


@each_codes
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side, compensated):
    """Texts of several lengths, in parts that are cut to their longest, and one text a part."""
    model = attached("llama")
    texts = tokens(70, 12)["input_ids"]
    mask = torch.arange(12) < torch.arange(70)[:, None] % 9 + 4
    if side == "left":
        mask = mask.flip(1)
    batch = {"input_ids": texts * mask, "attention_mask": mask.long()}
    wider = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
    for each in (batch, wider):
        OrderedFit(model, each, compensated=compensated).fit(coarse(model), rank=3)
        found = model.layers.fitted.pop(tuple(coarse(model)))
        if each is batch:
            expected = found
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.left @ one.right, other.left @ other.right)
        torch.testing.assert_close(one.correction, other.correction)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_codes_are_the_configurations_own_at_the_same_bytes(kind, tmp_path):
    model = attached(kind)
    configuration = coarse(model)
    nearest = {name: each.nbytes for name, each in model.layers.packed(configuration).items()}
    OrderedFit(model, tokens(), compensated=True).fit(configuration, rank=4)
    model.export_peft_adapter(tmp_path / "adapter", configuration, weights="packed")
    packed = load_quantized(tmp_path / "adapter" / "quantized.safetensors")
    fitted = model.layers.fitted[tuple(configuration)]
    for (name, layer), state in zip(model.layers.quantized.items(), fitted, strict=True):
        assert not torch.equal(state.quantized.codes, layer.plain(COARSE).quantized.codes)
        assert torch.equal(packed[name].codes, state.quantized.codes)
        assert packed[name].nbytes == nearest[name]


def test_an_adapter_without_the_codes_that_it_was_fitted_over_is_refused(tmp_path):
    model, configuration = attached("llama", torch.float32), [COARSE] * 14
    for compensated in (True, False):
        OrderedFit(model, tokens(), compensated=compensated).fit(configuration, rank=4)
        if compensated:
            with pytest.raises(ValueError, match=r"allowed: weights='packed' or weights='base_"):
                model.export_peft_adapter(tmp_path / "alone", configuration)
            assert not (tmp_path / "alone").exists()
        else:
            model.export_peft_adapter(tmp_path / "alone", configuration)
    model.export_peft_adapter(tmp_path / "other", 4.0)  # not fitted


@pytest.mark.parametrize("space", ["gguf", ROUNDING], ids=["gguf", "toy"])
def test_a_space_that_knows_only_the_nearest_codes_takes_them(space):
    found = []
    for compensated in (False, True):
        model = attached("llama", torch.float32, space=space)
        configuration = model.resolve(9.0 if space == "gguf" else 5.0)
        OrderedFit(model, tokens(), compensated=compensated).fit(configuration, rank=4)
        assert {state.quantized for state in model.layers.fitted[tuple(configuration)]} == {None}
        model.set_configuration(configuration)
        with torch.no_grad():
            found.append(model(**tokens()).logits)
    assert torch.equal(*found)


@each_codes
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_plain_peft_gives_the_same_outputs(kind, compensated, tmp_path):
    model, batch = attached(kind, torch.float32), tokens()
    configuration = coarse(model)
    OrderedFit(model, batch, compensated=compensated).fit(configuration, rank=4)
    model.set_configuration(configuration)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    base = type(model.get_base_model()).from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(**batch).logits
        close = {"atol": 1e-5 * expected.abs().max().item(), "rtol": 0}
        torch.testing.assert_close(plain(**batch).logits, expected, **close)
        torch.testing.assert_close(model.merge()(**batch).logits, expected, **close)
    exported = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stored = sum(
        each.numel()
        for name, each in exported.items()
        if name.endswith(("lora_A.weight", "lora_B.weight"))
    )
    assert stored == numbers(model.layers.fitted[tuple(configuration)])
    assert stored <= 4 * sum(
        sum(layer.pretrained.shape) for layer in model.layers.quantized.values()
    )


def test_the_model_is_left_as_it_was_but_for_that_configuration(examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8).train()
    model.set_configuration(3.0)
    before = outputs(model, examples)
    model.train()
    fit = OrderedFit(model, collate(examples, 0))
    fit.fit(2.5)
    assert model.training
    assert torch.equal(outputs(model, examples), before)
    with pytest.raises(ValueError, match="is not feasible"):
        fit.fit(1.0)
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        fit.fit(2.5, rank=0)
    with pytest.raises(TypeError, match=r"rank=1\.5"):
        fit.fit(2.5, rank=1.5)
    assert all(not p._forward_hooks for p in model.modules())


def test_a_model_that_sees_two_sequences_is_refused():
    base = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_ff=48, d_kv=8, num_layers=1, num_heads=2)
    )
    model = CoaLora.attach(base, rank=4)
    batch = {"input_ids": torch.ones(2, 5).long(), "decoder_input_ids": torch.ones(2, 3).long()}
    with pytest.raises(ValueError, match="is given 6 tokens, and the texts have 10"):
        OrderedFit(model, batch)
    assert model.configuration is None


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": [[3, 4]]}, r"is a list, not a tensor.*return_tensors='pt'"),
        ({"input_ids": torch.ones(0, 4).long()}, "the batch has no tokens, or none but padding"),
        (
            {"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.zeros(2, 4).long()},
            "the batch has no tokens, or none but padding",
        ),
    ],
    ids=["lists", "no texts", "padding"],
)
def test_a_batch_without_tokens_is_refused(batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        OrderedFit(CoaLora.attach(tiny_bert(), rank=4, alpha=8), batch)


def test_what_is_no_text_is_refused():
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    with pytest.raises(ValueError, match="needs input_ids or an attention_mask; got pixel_values"):
        OrderedFit(model, {"pixel_values": torch.zeros(1, 3, 4, 4)})
    assert model.configuration is None


def test_a_fit_that_fails_leaves_the_one_before(examples):
    model = CoaLora.attach(tiny_bert(), rank=4, alpha=8)
    fit = OrderedFit(model, collate(examples, 0))
    fit.fit(coarse(model))
    before = model.layers.fitted[tuple(coarse(model))]
    fit.inputs = {"inputs_embeds": torch.zeros(1, 4, 32), "input_ids": torch.ones(1, 4).long()}
    with pytest.raises(ValueError, match="inputs_embeds"):
        fit.fit(coarse(model))
    assert model.layers.fitted[tuple(coarse(model))] is before
    assert model.configuration is None
    assert all(not p._forward_hooks for p in model.modules())
