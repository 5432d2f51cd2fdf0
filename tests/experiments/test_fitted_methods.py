"""Methods whose configurations are fitted in closed form, on a classifier."""

from dataclasses import replace

import pytest
import torch

from coalora_lib.adapter import CoaLora
from coalora_lib.experiments.makers import in_order
from coalora_lib.experiments.methods import METHODS, methods_of
from coalora_lib.experiments.runner import job_for, make_record


@pytest.fixture
def kept(monkeypatch):
    """The models that a method makes, in order."""
    models: list[CoaLora] = []

    def keep(slug):
        method = METHODS[slug]

        def make(*given, **settings):
            models.append(method.make(*given, **settings))
            return models[-1]

        monkeypatch.setitem(METHODS, slug, replace(method, make=make))
        return models

    return keep


def test_the_group_is_compared_as_the_main_methods_are():
    assert {m.experiment.protocol for m in methods_of("fitted").values()} == {"comparison-2"}


@pytest.mark.parametrize("slug", methods_of("fitted"))
def test_every_method_runs_on_its_targets(slug, small_setup, kept):
    models, method = kept(slug), METHODS[slug]
    record = make_record(small_setup, job_for(slug, 4, 0))
    assert [result.budget for result in record.results] == [3.0, 4.0, None, None]
    fitted = bool(method.fitter or method.refitter)
    # What is fitted to a configuration is so whether it was trained on or not: there are no twins.
    assert len(record.twins) == (0 if fitted else 3)
    phases = {"preparation", "training", "search", "evaluation"}
    assert set(record.phases) == phases | ({"fitting"} if fitted else set())
    assert all(result.passes == small_setup.plan.steps for result in record.results)
    (model,) = models
    assert model.settings.rank + (model.settings.frozen_rank or 0) == 4
    assert bool(model.layers.fitted) == fitted
    for states in model.layers.fitted.values():
        assert all(state.replaces == (method.refitter is not None) for state in states)


@pytest.mark.parametrize("slug", ["lora-fitted", "in-order-fitted"])
def test_fits_at_the_end_are_of_the_whole_rank(slug, small_setup, kept):
    """Terms in the place of a half-trained rank take as many numbers as the whole."""
    models = kept(slug)
    make_record(small_setup, job_for(slug, 4, 0))
    shapes = models[0].shapes
    whole = sum(4 * sum(shape) for shape in shapes)
    for states in models[0].layers.fitted.values():
        taken = sum(
            state.left.shape[1] * sum(shape) for state, shape in zip(states, shapes, strict=True)
        )
        assert 0.8 * whole < taken <= whole


def test_lora_that_is_fitted_is_trained_without_quantization(small_setup, monkeypatch):
    """Its factors are those of LoRA on the pre-trained weights, bit for bit."""
    seen = []
    monkeypatch.setattr(
        "coalora_lib.experiments.runner._evaluate_into",
        lambda record, setup, model, *_: seen.append(model),
    )
    make_record(small_setup, job_for("lora-fitted", 4, 0))
    make_record(small_setup, job_for("lora-unquantized", 4, 0))
    fitted, plain = ({n: p for n, p in m.named_parameters() if "lora_" in n} for m in seen)
    factors = [p for n, p in sorted(plain.items())]
    own = [p for n, p in sorted(fitted.items())]
    assert len(own) == len(factors) > 0
    for first, second in zip(own, factors, strict=True):
        assert torch.equal(first, second)


def test_a_refit_aims_at_the_trained_model(small_setup, monkeypatch, kept):
    """It is made after the training, of the model as it then is."""
    slug, trained = "shared-lora-fitted", []
    models = kept(slug)

    def refitter(setup, model):
        trained.append(any(l1.any() for l1, *_ in model.layers.factors()))
        return in_order(trained=True)(setup, model)

    monkeypatch.setitem(METHODS, slug, replace(METHODS[slug], refitter=refitter))
    make_record(small_setup, job_for(slug, 4, 0))
    assert trained == [True]
    assert len(models[0].layers.fitted) == 4
