import pytest
import torch

from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.training import fisher_importance
from coalora_lib.training.batches import collate


@pytest.fixture
def batches(examples):
    return [collate(examples[start : start + 5], 0) for start in range(0, 15, 5)]


def test_is_the_mean_of_each_examples_squared_gradient(base_model, examples, batches):
    layers = adaptable_layers(base_model)
    found = fisher_importance(base_model, layers, batches)
    base_model.eval()
    expected = {name: 0.0 for name in layers}
    for example in examples[:15]:
        base_model.zero_grad()
        base_model(**collate([example], 0)).loss.backward()
        for name in layers:
            expected[name] += base_model.get_submodule(name).weight.grad.square() / 15
    for name in layers:
        torch.testing.assert_close(found[name], expected[name].float(), rtol=1e-4, atol=1e-12)


def test_the_model_is_left_as_it_was(base_model, batches):
    base_model.train()
    base_model.bert.pooler.dense.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in base_model.named_parameters()}
    layers = adaptable_layers(base_model)[:2]
    fisher_importance(base_model, layers, batches)
    assert base_model.training
    assert {name: p.requires_grad for name, p in base_model.named_parameters()} == before
    assert all(p.grad is None for p in base_model.parameters())
    assert not base_model.get_submodule(layers[0])._forward_hooks
    assert not base_model.get_input_embeddings()._forward_hooks


def test_bad_input_is_named(base_model, batches):
    with pytest.raises(TypeError, match=r"bert\.embeddings is a BertEmbeddings, not a linear"):
        fisher_importance(base_model, ["bert.embeddings"], batches)
    with pytest.raises(ValueError, match="no batch"):
        fisher_importance(base_model, [], [])
    base_model.classifier.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="loss of batch 0 is nan"):
        fisher_importance(base_model, adaptable_layers(base_model), batches)
