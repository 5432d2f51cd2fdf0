"""Gradient steps for one configuration, from what was fitted for it."""

import pytest
import torch

from coalora_lib.adapter import OrderedFit
from coalora_lib.training import polish
from tests.adapter.test_calibrated import coarse
from tests.adapter.test_ordered import attached, divergence, each_codes, tokens


def examples(count=200, seed=5):
    return [{"input_ids": row} for row in tokens(count, seed=seed)["input_ids"]]


def fitted(kind="bert", dtype=torch.float64):
    """A fit, and the configuration that was fitted."""
    model = attached(kind, dtype)
    fit = OrderedFit(model, tokens(300))
    fit.fit(coarse(model), rank=4)
    return fit, coarse(model)


def states(fit, configuration):
    """(left, right, correction) of each layer."""
    return [(s.left, s.right, s.correction) for s in fit.model.layers.fitted[tuple(configuration)]]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("bert", torch.float32),
        ("llama", torch.float32),
        ("gpt2", torch.float32),  # Conv1D
        ("llama", torch.bfloat16),
    ],
    ids=["bert", "llama", "gpt2", "bfloat16"],
)
def test_it_brings_the_model_closer_on_other_texts(kind, dtype):
    fit, configuration = fitted(kind, dtype)
    others = tokens(200, seed=9)
    before, old = divergence(fit.model, configuration, others), states(fit, configuration)
    losses = polish(fit, configuration, examples(800), 12, batch_size=200, learning_rate=0.01)
    assert divergence(fit.model, configuration, others) < 0.9 * before
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    for was, now in zip(old, states(fit, configuration), strict=True):
        for one, other in zip(was, now, strict=True):
            assert one.shape == other.shape
            assert other.dtype == torch.float32
            assert not torch.equal(one, other)


@each_codes
def test_without_steps_it_is_what_was_fitted(compensated):
    """The same term in other coordinates, also without a metric, beside the same codes."""
    for weighted in (True, False):
        model = attached("gpt2")
        fit = OrderedFit(model, tokens(300), weighted=weighted, compensated=compensated)
        fit.fit(coarse(model), rank=4)
        old, expected = states(fit, coarse(model)), divergence(model, coarse(model), tokens())
        assert polish(fit, coarse(model), examples(10), steps=0) == []
        for was, now in zip(old, states(fit, coarse(model)), strict=True):
            torch.testing.assert_close(was[0] @ was[1], now[0] @ now[1])
            torch.testing.assert_close(was[2], now[2])
        assert divergence(model, coarse(model), tokens()) == pytest.approx(expected, rel=1e-6)


def test_the_divergence_it_returns_is_that_of_the_steps_texts():
    fit, configuration = fitted()
    fit.model.set_configuration(None)
    before = divergence(fit.model, configuration, tokens(40, seed=5))
    losses = polish(fit, configuration, examples(40), steps=1)
    assert losses == pytest.approx([before], rel=1e-6)


def test_all_else_is_left_as_it_was():
    fit, configuration = fitted()
    model = fit.model.train()
    fit.fit(3.0, rank=2)
    other = states(fit, model.resolve(3.0))
    model.set_configuration(4.0)
    own = model.configuration
    for factors in model.layers.factors():
        torch.nn.init.normal_(factors.l1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name] if parameter.requires_grad else None
    polish(fit, configuration, examples(40), steps=2)
    assert model.training
    assert model.configuration == own
    for name, parameter in model.named_parameters():
        assert parameter.grad is (gradients[name] if parameter.requires_grad else None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for was, now in zip(other, states(fit, model.resolve(3.0)), strict=True):
        assert all(one is same for one, same in zip(was, now, strict=True))


def test_one_seed_is_one_result():
    found = []
    for seed in (0, 0, 1):
        fit, configuration = fitted()
        polish(fit, configuration, examples(40), steps=2, batch_size=16, seed=seed)
        found.append(states(fit, configuration)[0][0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_was_not_fitted_is_fitted_first():
    fit, _ = fitted()
    polish(fit, 3.0, examples(10), steps=1)
    assert tuple(fit.model.resolve(3.0)) in fit.model.layers.fitted


def test_errors_leave_what_was_fitted():
    fit, configuration = fitted()
    before = states(fit, configuration)
    with pytest.raises(ValueError, match="there are no examples to polish on"):
        polish(fit, configuration, [])
    with pytest.raises(ValueError, match="is not feasible"):
        polish(fit, 1.0, examples(10))
    with pytest.raises(FloatingPointError, match=r"step \d: the divergence is (nan|inf)"):
        polish(fit, configuration, examples(10), steps=5, learning_rate=1e200)
    for wrong in ({"steps": -1}, {"steps": 1.5}, {"batch_size": 0}, {"learning_rate": -1.0}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            polish(fit, configuration, examples(10), **wrong)
    with pytest.warns(UserWarning, match=r"first texts rose from .* so the fit stays as it was"):
        polish(fit, configuration, examples(10), steps=3, learning_rate=1e3)
    for was, now in zip(before, states(fit, configuration), strict=True):
        assert all(one is same for one, same in zip(was, now, strict=True))
    assert fit.model.configuration is None
