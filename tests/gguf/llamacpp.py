"""llama.cpp in a process of its own, asked for more than vectors: logits, tokens, and scales."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from coalora_lib.book.llamacpp import answer_with, ask, serve, vector

needs_llamacpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="xllamacpp, which brings llama.cpp, is not installed"
)


#: A token of letters in all tokenizers here.
PRINTABLE = 300


def run(folder, what, inputs, adapter=None, base="base.gguf"):
    """What llama.cpp computes of an export's files.

    Args:
        folder: of the files.
        what: "logits": log probabilities of the token after each of some lists of tokens;
            "embeddings" of lists of tokens or of texts; "tokens" of texts.
        inputs: these lists or texts.
        adapter: the factor of adapter.gguf; None goes without it.
        base: the file of the model.
    """
    asked = {"what": what, "inputs": inputs, "base": str(folder / base)}
    if adapter is not None:
        asked |= {"lora": str(folder / "adapter.gguf"), "scale": adapter}
    return ask("tests.gguf.llamacpp", asked, Path(__file__).parents[2])


def computed(server, what, given):
    """The answer for one input."""
    if what == "embeddings":
        return vector(server, given)
    if what == "tokens":
        content = json.dumps({"content": given, "add_special": True}).encode()
        with urlopen(Request(f"{server.listening_address}/tokenize", content)) as answer:
            return json.load(answer)["tokens"]
    request = {
        "prompt": given,
        "max_tokens": 1,
        "logprobs": 100_000,
        "cache_prompt": False,
        # Nothing is told of a token that is no whole character or ends the text; these numbers
        # are from before this choice.
        "logit_bias": [[PRINTABLE, 1e6]],
    }
    choice = server.handle_completions(request)["choices"][0]
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    found = {each["id"]: each["logprob"] for each in top}
    return [found[token] for token in range(len(found))]


if __name__ == "__main__":
    question = json.load(sys.stdin)
    what = question["what"]
    serving = serve(
        question["base"], question.get("lora"), question.get("scale", 1.0), what == "embeddings"
    )
    answer_with([computed(serving, what, each) for each in question["inputs"]])
