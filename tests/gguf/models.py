"""Tiny models and tokenizers of the kinds that llama.cpp runs."""

import json

import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn

from coalora_lib.adapter import CoaLora
from coalora_lib.gguf.vocabulary import PATTERNS
from coalora_lib.spaces import GgufSpace, register_space
from coalora_lib.spaces.gguf import stored
from coalora_lib.tasks.embedded import review_phrases
from tests.conftest import NO_DROPOUT, some_means

TEXTS = [text for text, _ in review_phrases(200, 0)] + ["It's 2026: naïve café, 12 345 €!"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ExactSpace(GgufSpace):
    """Whole steps, stored as float32: a loss to be corrected, and nothing to be rounded again."""

    name = "gguf-exact"
    fields = {"type": ("F32",)}  # noqa: RUF012

    def quantize(self, weight, choice):
        return stored((weight.float() * 32).round() / 32, "F32")


register_space(ExactSpace())


def wordpiece():
    """BERT's kind: single letters, at the start of a word and inside it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {t: i for i, t in enumerate([*special, *LETTERS, *(f"##{c}" for c in LETTERS)])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    named = zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{name}_token": token for name, token in named}
    )


def byte_level(pattern="qwen2"):
    """GPT-2's kind, with the pattern of one of its kin."""
    expression = next(each for each, name in PATTERNS.items() if name == pattern)
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    if expression:
        cut = pre_tokenizers.Split(Regex(expression), "isolated")
        split = pre_tokenizers.Sequence([cut, split])
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet))
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def sentencepiece():
    """LLaMA 2's kind: words begin with a mark, and what is not known is spelled in bytes."""
    special = ["<unk>", "<s>", "</s>"]
    spelled = [f"<0x{number:02X}>" for number in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *spelled], show_progress=False
    )
    trained.train_from_iterator([text for text in TEXTS if text.isascii()], trainer)
    about = transformers.PreTrainedTokenizerFast(tokenizer_object=trained)
    vocabulary = about.get_vocab()
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    made.add_special_tokens(special)
    start = [("<s>", 1)]
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
POSITIONS = {"max_position_embeddings": 128}
GROUPED = WIDE | POSITIONS | {"num_attention_heads": 4, "num_key_value_heads": 2}
#: rope_theta is none that llama.cpp takes by default.
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = ROPE | {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(
            vocab_size=64, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, hidden_act="gelu_new", **POSITIONS, **NO_DROPOUT,
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**GROUPED, vocab_size=420, rope_parameters=ROPE)
    ),
    "llama, tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **GROUPED, vocab_size=420, rope_parameters=LLAMA3, tie_word_embeddings=True,
            attention_bias=True, head_dim=32,
        )
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**GROUPED, vocab_size=420, rope_parameters=ROPE)
    ),
}  # fmt: skip
TOKENIZERS = {
    "bert": wordpiece,
    "llama": sentencepiece,
    "llama, tied": lambda: byte_level("llama-bpe"),
    "qwen2": byte_level,
}


def mixed(model):
    """A configuration in which each layer has the next type that its rows can take."""
    space = model.space
    taken = [space.mask(shape).nonzero()[:, 0].tolist() for shape in model.shapes]
    return space.from_rows([rows[i % len(rows)] for i, rows in enumerate(taken)])


def made(kind, space="gguf", **options):
    """A model as after training, every trained part filled with something, and its tokenizer."""
    torch.manual_seed(0)
    base = MODELS[kind]().eval()
    for name, parameter in base.named_parameters():
        if name.endswith("bias") or parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    if options.get("bias_correction"):
        options["mean_inputs"] = some_means(base)
    model = CoaLora.attach(base, rank=4, alpha=8, space=space, heads=(), **options)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval(), TOKENIZERS[kind]()
