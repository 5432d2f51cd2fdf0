"""The bank of factors: an adapter for each bit width."""

import torch
from peft import PeftModel
from torch import nn
from transformers import BertForSequenceClassification

from coalora_lib.adapter import CoaLora
from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.training import TrainingPlan, train
from tests.adapter.test_export import logits
from tests.conftest import tiny

PLAN = TrainingPlan(steps=20, batch_size=4, configurations_per_step=1)


def of_bits(bits):
    return [BlockwiseChoice(bits, 8, "fp32", 16, 16)] * 12


def test_a_bit_widths_adapter_learns_from_its_configurations_alone(examples):
    model = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="bank")
    shared = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="none")
    for each in (model, shared):
        each.set_configuration(of_bits(3))
    torch.testing.assert_close(logits(model), logits(shared))
    before = {name: p.detach().clone() for name, p in model.adjuster.named_parameters()}
    train(model, examples, [of_bits(3), of_bits(8)], PLAN)
    for name, bank in model.adjuster.named_parameters():
        moved = (bank != before[name].to(bank.device)).flatten(1).any(1)
        # 2, 3, 4 and 8 bits; what is never drawn has no gradient, and a decay too small to see
        decayed = (bank - before[name].to(bank.device)).abs().amax((1, 2)) / bank.abs().amax()
        assert moved[[1, 3]].all(), name
        assert (decayed[[0, 2]] < 0.01).all(), name


def test_bit_widths_store_one_adapter_each():
    model = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="bank")
    shared = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="none")
    ours = sum(p.numel() for name, p in model.named_parameters() if name.startswith("adjuster"))
    theirs = sum(p.numel() for name, p in shared.named_parameters() if "lora_" in name)
    assert ours == 4 * theirs
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any("lora_" in name for name in trained if not name.startswith("adjuster"))


def test_bit_widths_give_other_logits_only_for_other_bits():
    model = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="bank")
    for bank in model.adjuster.l1:
        nn.init.normal_(bank, std=0.1)
    layer = model.model.get_base_model().bert.encoder.layer[0].output.dense
    factors = []
    for configuration in (of_bits(3), of_bits(4), [BlockwiseChoice(3, 2, "bf16", 64, 256)] * 12):
        model.set_configuration(configuration)
        logits(model)
        factors.append(layer.lora_B["default"].stand_in.detach().clone())
    assert torch.equal(factors[0], factors[2])
    assert not torch.equal(factors[0], factors[1])


def test_a_bank_is_saved_read_back_and_exported(tmp_path):
    model = CoaLora.attach(tiny("bert"), rank=4, alpha=8, adjuster="bank")
    for parameter in model.adjuster.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.set_configuration(of_bits(3))
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    again = CoaLora.from_pretrained(tmp_path / "saved", tiny("bert"))
    assert torch.equal(logits(again), expected)
    model.export_peft_adapter(tmp_path / "adapter", weights="base_model")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "adapter" / "base_model")
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=0)
