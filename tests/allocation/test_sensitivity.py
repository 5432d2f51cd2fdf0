"""Sensitivities are the slopes of the loss on each layer's error, found layer by layer."""

import pytest
import torch

from coalora_lib.allocation import allocate, error_table, layer_sensitivities
from coalora_lib.allocation.sensitivity import LEAST, PROBES
from coalora_lib.spaces import get_space

SHAPES = [(24, 32), (16, 48), (40, 16)]


@pytest.fixture(scope="module")
def errors():
    generator = torch.Generator().manual_seed(0)
    return error_table({str(i): torch.randn(s, generator=generator) for i, s in enumerate(SHAPES)})


def additive(slopes, errors, space="nf", constant=0.3, asked=None):
    """A loss that is the layers' errors times their slopes."""
    space = get_space(space)

    def losses(configurations):
        for each in configurations:
            if asked is not None:
                asked.append(each)
            rows = [space.index(choice) for choice in each]
            parts = zip(slopes, errors, rows, strict=True)
            yield constant + sum(slope * float(row[c]) for slope, row, c in parts)

    return losses


def test_the_slopes_of_an_additive_loss_are_found(errors):
    slopes = [3.0, 0.2, 1.0]
    found = layer_sensitivities(errors, SHAPES, additive(slopes, errors))
    # The least error that a layer has meanwhile is in the constant, and a little of it in a slope.
    torch.testing.assert_close(found, torch.tensor(slopes, dtype=torch.float64), rtol=0.02, atol=0)


def test_one_layer_is_coarse_at_a_time(errors):
    asked = []
    layer_sensitivities(errors, SHAPES, additive([1, 1, 1], errors, asked=asked))
    space, finest = get_space("nf"), asked[0]
    assert len(asked) == 1 + len(SHAPES) * len(PROBES)
    assert [space.index(choice) for choice in finest] == errors.argmin(1).tolist()
    for number, each in enumerate(asked[1:]):
        layer, probe = divmod(number, len(PROBES))
        assert [i for i in range(3) if each[i] != finest[i]] == [layer]
        fewest = space.bits_table(SHAPES[layer]).min()
        assert space.bits_per_parameter(each[layer], SHAPES[layer]) <= fewest + PROBES[probe]


def test_what_is_allocated_by_them_has_the_least_loss(errors):
    """Over all pairs of choices of two layers, within the same bits."""
    slopes, shapes, table = [5.0, 0.1], SHAPES[:2], errors[:2]
    losses = additive(slopes, table, constant=0.0)
    weights = layer_sensitivities(table, shapes, losses)
    space = get_space("nf")
    by_error, by_loss = (
        allocate(each, shapes, 3.5).configs for each in (table, table * weights[:, None])
    )
    (before,), (after,) = (list(losses([each])) for each in (by_error, by_loss))
    assert after < 0.7 * before
    bits = torch.stack([space.bits_table(shape) for shape in shapes])
    every = slopes[0] * table[0][:, None] + slopes[1] * table[1]
    inside = (bits[0][:, None] + bits[1]) / 2 <= 3.5  # both have as many weights
    assert after <= every[inside].min() * 1.01


def test_a_layer_without_harm_is_not_free(errors):
    found = layer_sensitivities(errors, SHAPES, additive([2.0, 0.0, 4.0], errors))
    assert found[1] == pytest.approx(LEAST * float(found[[0, 2]].min()))


@pytest.mark.parametrize("space", ["int", "nf"])
def test_a_space_is_asked_for_its_choices(space):
    weights = {"a": torch.randn(8, 16, generator=torch.Generator().manual_seed(1))}
    table = error_table(weights, space)
    found = layer_sensitivities(table, [(8, 16)], additive([1.0], table, space), space)
    assert found.shape == (1,)


@pytest.mark.parametrize(
    ("shapes", "slopes", "message"),
    [(SHAPES[:2], [1, 1, 1], "3 rows of errors for 2 layers"), (SHAPES, [0, 0, 0], "for no layer")],
    ids=["shapes", "no rise"],
)
def test_what_cannot_be_told_is_refused(shapes, slopes, message, errors):
    with pytest.raises(ValueError, match=message):
        layer_sensitivities(errors, shapes, additive(slopes, errors))
