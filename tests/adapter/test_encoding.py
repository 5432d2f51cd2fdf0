import pytest
import torch

from coalora_lib.adapter import ConfigurationEncoder, HyperNetwork, describe_layers
from coalora_lib.adapter.encoding import LayerDescriptions
from coalora_lib.spaces import NORMAL_FLOAT


@pytest.mark.parametrize(
    ("name", "kind", "block"),
    [
        ("bert.encoder.layer.3.attention.self.query", "attention.self.query", 3),
        ("roberta.encoder.layer.23.output.dense", "output.dense", 23),
        ("model.layers.7.mlp.up_proj", "mlp.up_proj", 7),
        ("transformer.h.0.attn.c_attn", "attn.c_attn", 0),
        ("model.decoder.layers.11.fc1", "fc1", 11),
    ],
    ids=["bert", "roberta", "llama", "gpt2", "opt"],
)
def test_type_and_block_come_from_the_path(name, kind, block):
    layers = describe_layers([name])
    assert layers.types == (kind,)
    assert layers.block_index.tolist() == [block]


def test_attention_output_and_feed_forward_output_are_two_types():
    layers = describe_layers(["layer.0.attention.output.dense", "layer.0.output.dense"])
    assert len(layers.types) == 2


def test_a_layer_outside_blocks_is_a_type_of_its_own():
    layers = describe_layers(["layer.1.query", "projection"])
    assert layers.types == ("query", "projection")
    assert layers.block_index.tolist() == [1, 0]


def test_the_stacks_of_a_model_are_told_apart():
    names = ["encoder.block.0.q", "decoder.block.0.q", "decoder.block.1.q"]
    layers = describe_layers(names)
    assert layers.types == ("encoder.block: q", "decoder.block: q")
    assert layers.block_index.tolist() == [0, 0, 1]
    assert describe_layers(names[1:]).types == ("q",)


def test_encodings_tell_layers_and_choices_apart():
    names = [f"layer.{block}.{kind}" for block in range(3) for kind in ("q", "k")]
    encoder = ConfigurationEncoder(describe_layers(names), NORMAL_FLOAT)
    indices = torch.zeros(6, 5, dtype=torch.int64)
    encoded = encoder(indices)
    assert encoded.shape == (6, 56)
    assert len(torch.unique(encoded, dim=0)) == 6
    for field in range(5):
        changed = indices.clone()
        changed[2, field] = 1
        differs = (encoder(changed) != encoded).any(1)
        assert differs.tolist() == [False, False, True, False, False, False]


def test_size_of_the_papers_network():
    # 536,225 parameters at r = 64 (released code): 32 blocks, 5 types, and one learned scale.
    layers = LayerDescriptions(tuple("abcde"), torch.arange(5), torch.tensor([31] * 5))
    network = HyperNetwork(ConfigurationEncoder(layers, NORMAL_FLOAT), rank=64, widths=[8] * 5)
    assert sum(p.numel() for p in network.parameters()) + 1 == 536_225


def test_adjustments_start_close_to_zero_and_differ():
    encoder = ConfigurationEncoder(describe_layers(["l.0.q", "l.1.q"]), NORMAL_FLOAT)
    network = HyperNetwork(encoder, rank=8, widths=[8, 8])
    adjustments, bias = network(torch.zeros(2, 5, dtype=torch.int64))
    assert bias is None
    assert adjustments.shape == (2, 8, 8)
    assert 0 < adjustments.abs().max() < 0.1
    assert not torch.equal(adjustments[0], adjustments[1])
