"""A tokenizer as llama.cpp reads it: WordPiece, byte-level BPE, and BPE with bytes to fall back on.

Everything is taken from what tokenizers write to tokenizer.json; merges, the numbers of special
tokens and which are added come from the gguf package.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from coalora_lib.spaces.gguf import library

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

#: What stands before a piece at the beginning of a word.
WORD = "\u2581"
#: Words of letters, digits one by one or up to three, all else: what two patterns have in common.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How texts are cut before byte-level BPE, by the pattern: llama.cpp's name for it.
PATTERNS = {"": "gpt-2", _WORDS % "": "qwen2", _WORDS % "{1,3}": "llama-bpe"}
#: Special tokens that have a key; [CLS] is the one a text begins with.
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")
#: A token that is one byte.
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file holds of a tokenizer."""

    model: str  #: llama.cpp's kind of tokenizer
    tokens: list[str]
    types: list[int]  #: ``gguf.TokenType`` of each
    special: SpecialVocab
    pre: str | None = None  #: how texts are cut before merges
    scores: list[float] | None = None
    flags: dict[str, bool] = field(default_factory=dict)  #: further keys

    def fill(self, writer: GGUFWriter) -> None:
        """Write it."""
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        for key, value in self.flags.items():
            writer.add_bool(key, value)
        self.special.add_to_gguf(writer, quiet=True)


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """A tokenizer for an embedding of so many rows, each of which gets a token.

    Raises:
        ValueError: llama.cpp has no such tokenizer, or it has more tokens than rows.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"a {type(tokenizer).__name__} has no tokenizer.json, which is needed")
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    model = about["model"]
    kind = (model["type"], bool(model.get("byte_fallback")))
    if kind == ("WordPiece", False):
        return _wordpiece(tokenizer, about, rows)
    if kind == ("BPE", True):
        return _sentencepiece(tokenizer, about, rows)
    if kind == ("BPE", False):
        return _byte_level(tokenizer, about, rows)
    raise ValueError(
        f"a tokenizer of the kind {model['type']} cannot be written as GGUF; allowed: WordPiece, "
        "byte-level BPE, and BPE with byte_fallback"
    )


def _wordpiece(tokenizer: PreTrainedTokenizerBase, about: dict, rows: int) -> Vocabulary:
    """BERT's: pieces inside a word lose their mark, others get one."""
    tokens, types = _tokens(about, rows)
    gguf = library("gguf")
    prefix = about["model"]["continuing_subword_prefix"]
    marked = [
        token
        if kind != gguf.TokenType.NORMAL
        else token[len(prefix) :]
        if token.startswith(prefix)
        else WORD + token
        for token, kind in zip(tokens, types, strict=True)
    ]
    normalizer = about.get("normalizer") or {}
    lower = bool(normalizer.get("lowercase", False))
    strip = normalizer.get("strip_accents")
    flags = {
        "tokenizer.ggml.normalizer.lowercase": lower,
        "tokenizer.ggml.normalizer.strip_accents": lower if strip is None else strip,
    }
    special = _special(tokenizer, rows)
    return Vocabulary("bert", marked, types, special, "jina-v2-en", flags=flags)


def _byte_level(tokenizer: PreTrainedTokenizerBase, about: dict, rows: int) -> Vocabulary:
    """GPT-2's, and its kin with other patterns."""
    pattern = _pattern(about.get("pre_tokenizer") or {})
    if pattern not in PATTERNS:
        raise ValueError(
            "the pattern by which the tokenizer splits texts is not a known one of "
            f"llama.cpp: {pattern!r:.100}; allowed: those of {', '.join(PATTERNS.values())}"
        )
    tokens, types = _tokens(about, rows)
    special = _special(tokenizer, rows, merges=True)
    return Vocabulary("gpt2", tokens, types, special, PATTERNS[pattern])


def _sentencepiece(tokenizer: PreTrainedTokenizerBase, about: dict, rows: int) -> Vocabulary:
    """LLaMA 2's. llama.cpp merges to the token of the highest score: the order of the merges."""
    tokens, types = _tokens(about, rows)
    order: dict[str, int] = {}
    for merge in about["model"]["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        order.setdefault("".join(pair), len(order))
    scores = [-float(order.get(token, len(order))) for token in tokens]
    text = json.dumps([about.get("normalizer"), about.get("pre_tokenizer")])
    flags = {"tokenizer.ggml.add_space_prefix": "Prepend" in text or '"first"' in text}
    return Vocabulary("llama", tokens, types, _special(tokenizer, rows), "default", scores, flags)


def _tokens(about: dict, rows: int) -> tuple[list[str], list[int]]:
    """A token and its type for each row; rows without one are unused."""
    kinds = library("gguf").TokenType
    model = about["model"]
    named = {number: token for token, number in model["vocab"].items()}
    added = {each["id"]: each for each in about.get("added_tokens", ())}
    named |= {number: each["content"] for number, each in added.items()}
    if named and max(named) >= rows:
        raise ValueError(
            f"the tokenizer has a token {max(named)}, and the embedding {rows} rows: it is not "
            "this model's"
        )
    tokens, types = [], []
    for number in range(rows):
        token = named.get(number, f"[PAD{number}]")
        kind = kinds.NORMAL if number in named else kinds.UNUSED
        if model.get("byte_fallback") and BYTE.fullmatch(token):
            kind = kinds.BYTE
        elif model.get("byte_fallback") and token == model.get("unk_token"):
            kind = kinds.UNKNOWN
        elif number in added:
            kind = kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _special(tokenizer: PreTrainedTokenizerBase, rows: int, merges: bool = False) -> SpecialVocab:
    """Merges, numbers of special tokens, whether they are added, and the chat template."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = library("gguf").SpecialVocab(Path(folder), merges, SPECIAL, rows)
    tokens = tokenizer("a").input_ids
    for name, place in (("bos", 0), ("eos", -1)):  # else llama.cpp goes by the kind of tokenizer
        number = found.special_token_ids.get(name)
        found.add_special_token[name] = len(tokens) > 1 and tokens[place] == number
    return found


def _pattern(step: dict[str, Any]) -> str | None:
    """The regular expression of a byte-level pre-tokenizer, "" for GPT-2's; None if it is none."""
    steps = step.get("pretokenizers", [step])
    if [each.get("type") for each in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "" if not steps[0].get("add_prefix_space") else None
    if [each.get("type") for each in steps] == ["Split", "ByteLevel"]:
        return steps[0]["pattern"].get("Regex")
    return None
