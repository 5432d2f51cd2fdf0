"""Vectors of texts by llama.cpp, in a process of its own: what llama.cpp does not like aborts it.

The package xllamacpp brings llama.cpp prebuilt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from xllamacpp import Server

#: Seconds after which a process that does not answer is ended.
LONGEST = 300


class Vectors(NamedTuple):
    """What llama.cpp computed of some texts."""

    vectors: np.ndarray  #: (texts, features) float64, each of length one
    per_second: float  #: texts a second on one thread, each at its fastest of all passes


def embed(
    base: str | Path, texts: Sequence[str], adapter: str | Path | None = None, passes: int = 1
) -> Vectors:
    """Embed texts with llama.cpp, on one thread.

    Args:
        base: a GGUF file of an encoder.
        texts: one or more.
        adapter: a GGUF file of a LoRA for it; None goes without one.
        passes: how often the texts are embedded; only the speed depends on it.

    Raises:
        ModuleNotFoundError: xllamacpp is not installed.
        RuntimeError: llama.cpp refuses a file or aborts; its last line is told.
    """
    asked = {"base": str(base), "texts": list(texts), "passes": passes}
    if adapter is not None:
        asked["adapter"] = str(adapter)
    answer = ask(__name__, asked)
    return Vectors(np.array(answer["vectors"]), len(texts) / sum(answer["seconds"]))


def ask(module: str, question: Mapping[str, Any], folder: Path | None = None) -> Any:
    """Run a module as a process; the JSON on the last line that it prints.

    Args:
        module: reads the question from its standard input, as JSON.
        question: to be answered.
        folder: where Python finds the module, if it is not installed.

    Raises:
        ModuleNotFoundError: xllamacpp is not installed.
        RuntimeError: the process failed; its last line is told.
    """
    if find_spec("xllamacpp") is None:
        raise ModuleNotFoundError(
            "llama.cpp comes with the package xllamacpp, which is not installed: "
            "pip install xllamacpp"
        )
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        timeout=LONGEST,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"llama.cpp failed: {said[-1]:.500}")
    return json.loads(done.stdout.splitlines()[-1])


def answer_with(answer: Any) -> None:
    """Print what :func:`ask` returns and end the process: a server's threads are not waited for."""
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)


def serve(
    base: str, adapter: str | None = None, scale: float = 1.0, embedding: bool = True
) -> Server:
    """A server of a model, on one thread, with nothing rounded but what the file's types say.

    Args:
        base, adapter: GGUF files.
        scale: the adapter's factor.
        embedding: vectors are asked for, not text.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.embedding = embedding
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, scale)]
    return xllamacpp.Server(params)


def vector(server: Server, given: str | Sequence[int]) -> list[float]:
    """The vector of a text, or of a list of tokens."""
    return server.handle_embeddings({"input": given})["data"][0]["embedding"]


def _embedded(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to :func:`embed`."""
    server = serve(question["base"], question.get("adapter"))
    texts = question["texts"]
    found: list[list[float]] = []
    fastest = [float("inf")] * len(texts)
    for _ in range(question["passes"]):
        found = []
        for position, text in enumerate(texts):
            began = time.perf_counter()
            found.append(vector(server, text))
            fastest[position] = min(fastest[position], time.perf_counter() - began)
    return {"vectors": found, "seconds": fastest}


if __name__ == "__main__":
    answer_with(_embedded(json.load(sys.stdin)))
