import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coalora_lib.quantization import BlockwiseChoice
from coalora_lib.quantization.choices import FIELDS
from coalora_lib.spaces import INTEGER, mean_bits_cost, random_at_bits, random_configuration
from coalora_lib.spaces import NORMAL_FLOAT as NF

#: Sums of a few float64.
EXACT = 1e-12
#: Draws of a layer's choice: about 46 of each of the 432.
LAYERS = 20_000

any_choice = st.sampled_from(NF.choices)


def test_space_has_432_distinct_choices_in_lexicographic_order():
    choices = NF.choices
    assert len(choices) == len(set(choices)) == math.prod(NF.cardinalities) == 432
    indices = [NF.indices(choice) for choice in choices]
    assert indices == sorted(indices)


@given(any_choice)
def test_choice_and_indices_find_their_way_back(config):
    assert NF.choices[NF.index(config)] == config
    indices = torch.tensor(NF.indices(config))
    assert NF.from_indices(indices) == [config]


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (BlockwiseChoice(4, 8, "fp32", 64, 256), 4 + 8 / 64 + 32 / 16384),
        (BlockwiseChoice(2, 2, "bf16", 64, 256), 2 + 2 / 64 + 16 / 16384),
        (BlockwiseChoice(8, 8, "fp32", 16, 16), 8 + 8 / 16 + 32 / 256),
    ],
    ids=["qlora", "smallest", "largest"],
)
def test_bits_follow_the_paper(config, bits):
    assert config.bits_per_parameter == bits


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_outside_the_choices_is_named(name):
    values = {field: allowed[0] for field, allowed in FIELDS.items()} | {name: 5}
    with pytest.raises(ValueError, match=f"{name}=5 is not a choice; allowed"):
        BlockwiseChoice(**values)


@given(st.lists(any_choice, min_size=1, max_size=8))
def test_round_trips(configuration):
    assert NF.from_indices(NF.to_indices(configuration)) == configuration
    assert NF.from_indices(NF.to_indices(configuration).flatten()) == configuration
    rows = [NF.index(choice) for choice in configuration]
    assert NF.from_rows(rows) == configuration


@pytest.mark.parametrize("row", [-1, 432])
def test_a_row_out_of_range_is_named(row):
    with pytest.raises(ValueError, match=rf"choice {row} is outside 0\.\.431"):
        NF.from_rows([row])


def test_a_choice_of_another_space_is_named():
    with pytest.raises(
        TypeError, match="is not a choice of the space 'int'; its fields are weight_b"
    ):
        INTEGER.index(NF.choices[0])


def test_indices_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"index 4 of weight_bits is outside 0\.\.3"):
        NF.from_indices(torch.tensor([4, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="not a multiple of 5"):
        NF.from_indices(torch.zeros(7, dtype=torch.int64))


def test_bits_of_many_configurations_match_one_at_a_time():
    generator = torch.Generator().manual_seed(0)
    drawn = [random_configuration(3, generator) for _ in range(10)]
    sizes = [10, 200, 35]
    stacked = torch.stack([NF.to_indices(configuration).flatten() for configuration in drawn])
    expected = torch.tensor([NF.mean_bits(configuration, sizes) for configuration in drawn])
    torch.testing.assert_close(mean_bits_cost("nf", sizes)(stacked), expected.double())
    assert torch.equal(
        NF.bits_table().argmin(), torch.tensor(NF.index(BlockwiseChoice(2, 2, "bf16", 64, 256)))
    )


def test_bits_after_steps_are_those_of_the_rows_they_lead_to():
    """Every step inside, of several configurations, layers of several sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [10, 200, 35]
    indices = torch.stack(
        [NF.to_indices(random_configuration(3, generator)).flatten() for _ in range(4)]
    )
    steps, rows = [], []
    for start, row in enumerate(indices):
        for coordinate, choices in enumerate(NF.cardinalities * 3):
            for change in (-1, 1):
                if 0 <= row[coordinate] + change < choices:
                    after = row.clone()
                    after[coordinate] += change
                    steps.append((start, coordinate, change))
                    rows.append(after)
    bits_of = mean_bits_cost("nf", sizes)
    before = indices.clone()
    start, *step = torch.tensor(steps).T
    found = bits_of(indices)[start] + bits_of.changes(indices, start, *step)
    expected = [NF.mean_bits(NF.from_indices(row), sizes) for row in rows]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(found, bits_of(torch.stack(rows)), atol=EXACT, rtol=EXACT)
    assert torch.equal(indices, before)


def test_no_configurations_have_no_bits():
    """What :func:`propose` asks for where every walk is stuck."""
    assert mean_bits_cost("nf", [10, 20])(torch.empty(0, 10, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("bits", [2.1, 3.0, 4.4, 6.0, 8.3])
def test_random_configurations_at_bits_have_them_on_average(bits):
    drawn = random_at_bits(LAYERS, bits, torch.Generator().manual_seed(0))
    found = torch.tensor([config.bits_per_parameter for config in drawn]).double()
    assert len(drawn) == LAYERS
    assert abs(found.mean() - bits) < 4 * found.std() / LAYERS**0.5


def test_random_configurations_at_bits_are_the_generators():
    first, again, other = (
        random_at_bits(20, 3.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_random_configurations_are_uniform_at_the_mean_of_all():
    """The most entropy at 4.4 bits is that of the uniform draw: every choice turns up."""
    drawn = random_at_bits(LAYERS, NF.bits_table().mean().item(), torch.Generator().manual_seed(0))
    counts = torch.tensor([NF.index(config) for config in drawn]).bincount(minlength=432)
    expected = LAYERS / 432
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize("bits", [1.0, 2.0, 9.0, math.nan])
def test_bits_that_no_choice_has_are_refused(bits):
    message = rf"bits={bits} must lie between the least, 2\.0322, and the most .*, 8\.6250"
    with pytest.raises(ValueError, match=message):
        random_at_bits(3, bits, torch.Generator())


def test_mean_bits_wants_a_size_for_each_layer():
    with pytest.raises(ValueError, match="1 choices for 2 layers"):
        NF.mean_bits([NF.choices[0]], [1, 2])
