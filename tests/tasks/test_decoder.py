import torch

from coalora_lib.kinds import get_kind
from coalora_lib.tasks import load_task, small_decoder
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
