"""llama.cpp in a process of its own: what it does not like aborts the process that it is in."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

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
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf.llamacpp"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def served(asked):
    """A server of the model, on one thread, with nothing rounded but what the file's types say."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["base"]
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.embedding = asked["what"] == "embeddings"
    if "lora" in asked:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["lora"], asked["scale"])]
    return xllamacpp.Server(params)


def computed(server, what, given):
    """The answer for one input."""
    if what == "embeddings":
        return server.handle_embeddings({"input": given})["data"][0]["embedding"]
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
    serving = served(question)
    answers = [computed(serving, question["what"], each) for each in question["inputs"]]
    print("\n" + json.dumps(answers), flush=True)
    os._exit(0)  # the server's threads need not be waited for
