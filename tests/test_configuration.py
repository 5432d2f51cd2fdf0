import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.configuration import (
    CHOICES,
    FIELD_SIZES,
    LayerConfig,
    bits_of_indices,
    bits_table,
    from_indices,
    from_json,
    mean_bits,
    random_configuration,
    to_indices,
    to_json,
)

any_choice = st.sampled_from(LayerConfig.space())


def test_space_has_432_distinct_choices_in_lexicographic_order():
    space = LayerConfig.space()
    assert len(space) == len(set(space)) == math.prod(FIELD_SIZES) == 432
    assert [config.indices for config in space] == sorted(config.indices for config in space)


@given(any_choice)
def test_choice_and_indices_find_their_way_back(config):
    assert LayerConfig.space()[config.choice] == config
    assert LayerConfig.from_indices(config.indices) == config


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (LayerConfig(4, 8, "fp32", 64, 256), 4 + 8 / 64 + 32 / 16384),
        (LayerConfig(2, 2, "bf16", 64, 256), 2 + 2 / 64 + 16 / 16384),
        (LayerConfig(8, 8, "fp32", 16, 16), 8 + 8 / 16 + 32 / 256),
    ],
    ids=["qlora", "smallest", "largest"],
)
def test_bits_follow_the_paper(config, bits):
    assert config.bits_per_parameter == bits


@pytest.mark.parametrize("name", CHOICES)
def test_a_value_outside_the_choices_is_named(name):
    values = {field: allowed[0] for field, allowed in CHOICES.items()} | {name: 5}
    with pytest.raises(ValueError, match=f"{name}=5 is not a choice; allowed"):
        LayerConfig(**values)


@given(st.lists(any_choice, min_size=1, max_size=8))
def test_round_trips(configuration):
    assert from_indices(to_indices(configuration)) == configuration
    assert from_indices(to_indices(configuration).flatten()) == configuration
    assert from_json(to_json(configuration)) == configuration


@pytest.mark.parametrize("text", ['{"a": 1}', '[{"weight_bits": 4}]', "[3]"])
def test_json_that_is_no_configuration_is_refused(text):
    with pytest.raises(ValueError, match=r"configuration|must have the fields"):
        from_json(text)


def test_indices_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"index 4 of weight_bits is outside 0\.\.3"):
        from_indices(torch.tensor([4, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="no multiple of 5"):
        from_indices(torch.zeros(7, dtype=torch.int64))


def test_bits_of_many_configurations_match_one_at_a_time():
    generator = torch.Generator().manual_seed(0)
    drawn = [random_configuration(3, generator) for _ in range(10)]
    sizes = [10, 200, 35]
    stacked = torch.stack([to_indices(configuration).flatten() for configuration in drawn])
    expected = torch.tensor([mean_bits(configuration, sizes) for configuration in drawn])
    torch.testing.assert_close(bits_of_indices(stacked, sizes), expected.double())
    assert torch.equal(
        bits_table().argmin(), torch.tensor(LayerConfig(2, 2, "bf16", 64, 256).choice)
    )


def test_mean_bits_wants_a_size_for_each_layer():
    with pytest.raises(ValueError, match="1 configurations for 2 layers"):
        mean_bits([LayerConfig.space()[0]], [1, 2])
