"""What outputs of layers are added to, as it is seen in a pass."""

import pytest
import torch
import torch.nn.functional as F

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.aims import Aims
from coalora_lib.adapter.passes import Additions, hooks
from tests.conftest import tiny

OUTPUT, RESIDUAL = torch.full((2, 3), 1.0), torch.full((2, 3), 10.0)


def seen(use, new=None):
    """What is found in a use of an output, and what the use returns."""
    found = []

    def keep(name, output, residual):
        found.append((name, output, residual.clone()))  # it may be added to in place
        return new

    additions = Additions(keep)
    with additions:
        additions.wait_for("layer", OUTPUT)
        result = use(OUTPUT)
    return found, result


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + RESIDUAL,
        lambda x: RESIDUAL + x,
        lambda x: torch.add(RESIDUAL, x),
        lambda x: RESIDUAL.clone().add_(x),
        lambda x: F.dropout(x, 0.5, training=False) + RESIDUAL,
        lambda x: torch.nn.Dropout(0.5).eval()(x) + RESIDUAL,
    ],
    ids=["left", "right", "function", "in place", "dropout", "dropout module"],
)
def test_an_addition_is_seen_and_its_output_replaced(use):
    (((name, output, residual),), result) = seen(use)
    assert name == "layer"
    assert output is OUTPUT
    assert torch.equal(residual, RESIDUAL)
    assert torch.equal(result, OUTPUT + RESIDUAL)
    _, result = seen(use, 2 * OUTPUT)
    assert torch.equal(result, 2 * OUTPUT + RESIDUAL)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + 1,
        lambda x: x + RESIDUAL[0],
        lambda x: x * RESIDUAL + RESIDUAL,
        lambda x: 0.5 * x * (1 + (x + 0.04 * x**3).tanh()),
        lambda x: F.dropout(x, 0.5, training=True) + RESIDUAL,
        lambda x: RESIDUAL + RESIDUAL,
    ],
    ids=["number", "broadcast", "product first", "gelu_new", "dropout in training", "others"],
)
def test_other_sums_are_none(use):
    assert seen(use)[0] == []


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("bert", {"attention.output.dense", "output.dense"}),
        ("roberta", {"attention.output.dense", "output.dense"}),
        ("llama", {"self_attn.o_proj", "mlp.down_proj"}),
        ("qwen2", {"self_attn.o_proj", "mlp.down_proj"}),
        ("gpt2", {"attn.c_proj", "mlp.c_proj"}),  # its gelu_new adds to its input too
        ("opt", {"self_attn.out_proj", "fc2"}),
    ],
)
def test_the_residuals_of_architectures(kind, ends):
    model = CoaLora.attach(tiny(kind), rank=4, alpha=8).eval()
    batch = {"input_ids": torch.randint(3, 60, (4, 6))}
    found = Aims(model, batch, residuals=True).residuals
    names = [name for name in model.layer_names if name.endswith(tuple(ends))]
    assert set(found) == set(names)
    assert len(names) == 4  # of two blocks
    assert Aims(model, batch, residuals=False).residuals == {}


def test_hooks_go_when_a_pass_fails():
    base = torch.nn.Sequential(torch.nn.Linear(2, 2))

    def fail(*_):
        raise RuntimeError("in a hook")

    with pytest.raises(RuntimeError, match="in a hook"), hooks(base, {"0": fail}, before=True):
        base(torch.ones(1, 2))
    assert not base[0]._forward_pre_hooks
