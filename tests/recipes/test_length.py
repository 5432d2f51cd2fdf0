"""Texts are cut to what a model takes, wherever a run or a fit reads them."""

import pandas as pd
import pytest
import transformers
from transformers import AutoTokenizer

from coalora_lib.recipes import Device, Settings, adapt_to_texts, evaluate_run, train_run
from coalora_lib.recipes.texts import longest
from coalora_lib.tasks.embedded import review_phrases
from tests.conftest import NO_DROPOUT, SIZES

PHRASES = review_phrases(40, 0)
#: Longer than any of the models takes.
LONGER = 64
SMALL = {"rank": 2, "epochs": 1, "batch_size": 8, "configurations": 2, "max_length": LONGER}


@pytest.fixture(scope="module")
def folders(tiny_folders, tmp_path_factory):
    """Of tiny models with 32 positions, one of which begins after its padding's as RoBERTa's do,
    and a tokenizer that knows of no limit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["bert"])
    assert tokenizer.model_max_length > 10**9
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": 1}
    config = transformers.RobertaConfig(**sizes, **NO_DROPOUT, intermediate_size=48)
    roberta = tmp_path_factory.mktemp("roberta")
    transformers.RobertaModel(config).save_pretrained(roberta)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    tokenizer.save_pretrained(roberta)
    return tiny_folders | {"roberta": str(roberta)}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Of short texts, and of texts as long as five."""
    folder, texts = tmp_path_factory.mktemp("tables"), [text for text, _ in PHRASES]
    labels = [label for _, label in PHRASES]
    longer = [" ".join([texts[i - k] for k in range(5)] * 5) for i in range(len(texts))]
    for name, column in (("short", texts), ("long", longer)):
        table = pd.DataFrame({"text": column, "label": labels})
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("trained_on", ["short", "long"])
def test_longer_texts_are_cut(kind, trained_on, folders, tables, tmp_path):
    asked = {"label": "label"} if kind != "gpt2" else {"kind": "causal-lm"}
    settings = Settings(
        model=folders[kind], data=str(tables / f"{trained_on}.csv"), **asked, **SMALL
    )
    run = train_run(tmp_path / "run", settings)
    assert evaluate_run(run, [3.0], tables / "long.csv")[0]["loss"] > 0


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_longer_texts_are_cut_for_a_fit(kind, folders, tables, tmp_path):
    data, device = tables / "long.csv", Device(bits=3)
    asked = {"rank": 2, "count": 10, "max_length": LONGER}
    assert adapt_to_texts(folders[kind], data, tmp_path / "out", device, **asked).after > 0


def test_the_least_of_what_is_asked_and_of_what_tokenizer_and_model_take(folders):
    found = {}
    for kind, folder in folders.items():
        model = transformers.AutoModel.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found[kind] = longest(LONGER, tokenizer, model)
        assert longest(8, tokenizer, model) == 8
        tokenizer.model_max_length = 16
        assert longest(LONGER, tokenizer, model) == 16
    assert found == {"bert": 32, "llama": 32, "gpt2": 32, "roberta": 30}
