import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coalora_lib import CoaLora
from coalora_lib.kinds import get_kind
from coalora_lib.tasks import load_classifier, load_task, small_decoder
from coalora_lib.training import TrainingPlan, evaluate, train
from coalora_lib.training.baselines import full_fine_tuning


def test_every_word_has_a_token_and_texts_come_back():
    phrases = load_task("embedded").train.select(range(50))
    _, tokenizer = small_decoder(phrases)
    text = phrases["sentence"][0]
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text.split())
    assert tokenizer.decode(tokens).split() == text.split()
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_the_same_seed_gives_the_same_decoder():
    phrases = load_task("embedded").train.select(range(50))
    first, again, other = (small_decoder(phrases, seed).model for seed in (0, 0, 1))
    tokens = {"input_ids": torch.tensor([[3, 4, 5]])}
    assert torch.equal(first(**tokens).logits, again(**tokens).logits)
    assert not torch.equal(first(**tokens).logits, other(**tokens).logits)


def test_it_learns_the_phrases():
    phrases = load_task("embedded").train.select(range(100))
    decoder, tokenizer = small_decoder(phrases)
    blocks = get_kind("causal-lm").examples(phrases, tokenizer, 16)
    before = evaluate(decoder, blocks).perplexity
    plan = TrainingPlan(40, 16, configurations_per_step=1, learning_rate=3e-3)
    train(full_fine_tuning(decoder), blocks, None, plan)
    assert evaluate(decoder, blocks).perplexity < 0.3 * before


class Precisions(TorchDispatchMode):
    """Collects the dtype of every floating-point number that is computed inside."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.seen |= {each.dtype for each in tensors if each.is_floating_point()}
        return made


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("of", ["decoder", "encoder"])
def test_in_float64_nothing_is_computed_in_less(of, adapted):
    # Rounding to float32 depends on the processor's instructions, and training makes it visible.
    phrases = load_task("embedded").train.select(range(50))
    if of == "decoder":
        model = small_decoder(phrases, dtype=torch.float64).model
        labels = torch.tensor([[3, 4, 5, 6]])
    else:
        model, labels = load_classifier(dtype=torch.float64).model, torch.tensor([1])
    if adapted:
        model = CoaLora.attach(model, rank=2)
        model.set_configuration(model.resolve([model.space.choices[0]] * len(model.layer_names)))
    with Precisions() as found:
        model(input_ids=torch.tensor([[3, 4, 5, 6]]), labels=labels).loss.backward()
    assert found.seen == {torch.float64}


def test_in_float64_it_is_the_decoder_that_transformers_computes():
    phrases = load_task("embedded").train.select(range(50))
    ours, theirs = (small_decoder(phrases, dtype=d).model for d in (torch.float64, torch.float32))
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 2, 2]])
    given = {"input_ids": tokens, "labels": tokens.masked_fill(tokens == 2, -100)}
    exact, rounded = ours(**given), theirs(**given)
    torch.testing.assert_close(exact.logits.float(), rounded.logits, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(exact.loss.float(), rounded.loss, atol=2e-6, rtol=1e-6)
