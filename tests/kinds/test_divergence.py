"""How far outcomes are apart, for every kind, and what random scalars say of it."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput
from transformers.utils import ModelOutput

from coalora_lib.kinds import get_kind, kinds
from coalora_lib.kinds.own import OwnLoss

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
DRAWS = 20000
#: The shape of a model's logits by kind, for three texts of four tokens and five classes.
OF_TEXTS, OF_TOKENS = (3, 5), (3, 4, 5)
SHAPES = {
    "single-label": OF_TEXTS,
    "several-labels": OF_TEXTS,
    "regression": (3, 2),
    "tokens": OF_TOKENS,
    "causal-lm": OF_TOKENS,
    "next-token": OF_TOKENS,
    "masked-lm": OF_TOKENS,
    "seq2seq": OF_TOKENS,
    "own-loss": OF_TOKENS,
}
ALL = [*kinds(), OwnLoss.name]


def kind_named(name):
    return OwnLoss(torch.nn.Linear(1, 1)) if name == OwnLoss.name else get_kind(name)


def said(name, seed=0):
    """A kind's outcome of a made-up output, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "embedding":
        output = BaseModelOutput(last_hidden_state=numbers(3, 4, 6))
    elif name == "spans":
        output = QuestionAnsweringModelOutput(start_logits=numbers(3, 4), end_logits=numbers(3, 4))
    else:
        output = ModelOutput(logits=numbers(*SHAPES[name]))
    return kind_named(name).outcome(output, {"attention_mask": MASK})


@pytest.mark.parametrize("name", ALL)
def test_it_is_zero_at_itself_and_positive_elsewhere(name):
    kind, outcome = kind_named(name), said(name)
    assert kind.divergence(outcome, outcome).item() == pytest.approx(0, abs=1e-12)
    assert kind.divergence(said(name, 1), outcome) > 0.01


@pytest.mark.parametrize("name", ALL)
def test_random_scalars_have_its_second_derivative(name):
    """E[grad s grad s^T] for one prediction, over many draws at once, and the Hessian."""
    kind, target = kind_named(name), said(name)[1:2]
    hessian = torch.autograd.functional.hessian(lambda x: kind.divergence(x, target), target)
    hessian = hessian.reshape(target.shape[1], target.shape[1])
    many = target.repeat(DRAWS, 1).requires_grad_()
    drawn = kind.drawn(many, torch.Generator().manual_seed(0))
    (gradients,) = torch.autograd.grad(drawn, many)
    found = gradients.T @ gradients / DRAWS
    torch.testing.assert_close(found, hessian, atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_padding_says_nothing(name):
    """Predictions are of texts, or of their nine real tokens; ends of spans are inside them."""
    outcome = said(name)
    counts = {"several-labels": 15, "spans": 6}
    of_tokens = SHAPES.get(name) == OF_TOKENS
    assert len(outcome) == counts.get(name, 9 if of_tokens else 3)
    if name == "spans":
        assert (outcome.softmax(-1)[MASK.repeat(2, 1) == 0] == 0).all()


def test_of_distributions_it_is_kullback_and_leiblers_in_nats():
    one, other = said("single-label"), said("single-label", 1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=other), torch.distributions.Categorical(logits=one)
    )
    torch.testing.assert_close(get_kind("single-label").divergence(one, other), expected.mean())


def test_of_several_labels_it_is_that_of_each_decision():
    one, other = said("several-labels"), said("several-labels", 1)
    each = [torch.distributions.Bernoulli(logits=both[:, 1]) for both in (other, one)]
    expected = torch.distributions.kl_divergence(*each).mean()
    torch.testing.assert_close(get_kind("several-labels").divergence(one, other), expected)


def test_of_embeddings_it_is_one_less_the_cosine():
    one, other = said("embedding"), said("embedding", 1)
    expected = 1 - torch.cosine_similarity(one, other).mean()
    torch.testing.assert_close(get_kind("embedding").divergence(one, other), expected)


def test_a_model_without_logits_is_refused():
    with pytest.raises(ValueError, match="a single-label model gave last_hidden_state, and no log"):
        get_kind("single-label").outcome(BaseModelOutput(torch.zeros(1, 2, 3)), {})
