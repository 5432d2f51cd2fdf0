"""Base models that are refused, in words that say what to do, and left as they are."""

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from tests.adapter.test_model import batch
from tests.conftest import tiny


def with_settings(method):
    """As transformers leaves a model that it loaded quantized."""

    def change(base):
        base.config.quantization_config = {"quant_method": method, "bits": 4}

    change.__name__ = f"loaded_with_{method}"
    return change


def in_4_bits(base):
    base.is_loaded_in_4bit = True


def of_foreign_layers(package):
    """A layer's class comes from the package of a quantizer, which need not be installed."""

    def change(base):
        layer = type("WQLinear", (nn.Module,), {"__module__": f"{package}.modules.linear"})
        base.bert.encoder.layer[0].output.dense = layer()

    change.__name__ = f"layers_of_{package}"
    return change


def dynamically(base):
    linears = {nn.Linear}
    torch.ao.quantization.quantize_dynamic(base, linears, dtype=torch.qint8, inplace=True)


def in_integers(base):
    linear = base.get_submodule(adaptable_layers(base)[3])
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)


def in_8_bit_floats(base):
    linear = base.get_submodule(adaptable_layers(base)[3])
    linear.weight.data = linear.weight.detach().to(torch.float8_e4m3fn)


def all_on_meta(base):
    base.to("meta")


def partly_on_meta(base):
    base.bert.embeddings.word_embeddings.to("meta")


def offloaded(base):
    cpu_offload(base, execution_device=torch.device("cpu"))


def adapted_by_transformers(base):
    base.add_adapter(LoraConfig(target_modules=["query"]))


def adapted_by_peft(base):
    return get_peft_model(base, LoraConfig(target_modules=["query"]))


def with_a_prefix(base):
    settings = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=2)
    return get_peft_model(base, settings)


def adapted_by_us(base):
    return CoaLora.attach(base, rank=4)


def normalised(base):
    weight_norm(base.get_submodule(adaptable_layers(base)[3]))


def pruned(base):
    prune.l1_unstructured(base.get_submodule(adaptable_layers(base)[3]), "weight", 0.5)


def compiled(base):
    return torch.compile(base, backend="eager")


def in_parallel(base):
    return nn.DataParallel(base)


def no_transformer(_):
    return nn.Sequential(nn.Linear(2, 2))


REFUSED = [
    (with_settings("gptq"), "quantized by gptq already; load it without quantization"),
    (with_settings("awq"), "quantized by awq already"),
    (with_settings("torchao"), "quantized by torchao already"),
    (in_4_bits, "quantized by bitsandbytes already"),
    (of_foreign_layers("awq"), "quantized by AWQ already"),
    (of_foreign_layers("torchao"), "quantized by torchao already"),
    (dynamically, "quantized by torch.ao already"),
    (in_integers, r"layer\.0\.attention\.output\.dense\.weight in torch\.int8; allowed: float16"),
    (in_8_bit_floats, r"dense\.weight in torch\.float8_e4m3fn; allowed"),
    (all_on_meta, "on the meta device: it has no weights to quantize"),
    (partly_on_meta, r"word_embeddings\.weight on the meta device"),
    (offloaded, "offloaded by accelerate; load it with a device_map that keeps all of it"),
    (adapted_by_transformers, "already has an adapter; load it again without one, or merge"),
    (adapted_by_peft, "already has an adapter"),
    (with_a_prefix, "already has an adapter"),
    (adapted_by_us, "already has an adapter"),
    (normalised, "not as a plain parameter: it is sharded, parametrized or pruned"),
    (pruned, "not as a plain parameter"),
]


def named(each):
    return getattr(each, "__name__", None)


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=named)
def test_a_base_without_plain_weights_is_refused(change, words, record):
    base = tiny("bert")
    base = change(base) or base
    modules = [(name, type(module)) for name, module in base.named_modules()]
    with pytest.raises(ValueError, match=words) as refused:
        CoaLora.attach(base, rank=4)
    record["refused"][named(change).replace("_", " ")] = str(refused.value)
    assert [(name, type(module)) for name, module in base.named_modules()] == modules


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (compiled, "not OptimizedModule; it wraps a BertForSequenceClassification: hand that in"),
        (in_parallel, "not DataParallel; it wraps a BertForSequenceClassification: hand that in"),
        (no_transformer, "must be a transformers PreTrainedModel, not Sequential$"),
    ],
    ids=named,
)
def test_what_is_no_transformers_model_is_refused(wrap, words):
    with pytest.raises(TypeError, match=words):
        CoaLora.attach(wrap(tiny("bert")), rank=4)


def test_a_merged_base_is_taken():
    adapted = get_peft_model(tiny("bert"), LoraConfig(target_modules=["query"]))
    model = CoaLora.attach(adapted.merge_and_unload(), rank=4)
    expected = tiny("bert").eval()(**batch()).logits
    torch.testing.assert_close(model.eval()(**batch()).logits, expected)
