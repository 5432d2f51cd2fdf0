"""The README of exported files: their contents, and the commands that run them."""

from collections import Counter
from collections.abc import Mapping

#: What runs a model of an architecture: a title, and options beside the files.
COMMANDS = {
    "bert": (
        ("vectors of texts", 'llama-embedding {files} --pooling {pooling} -p "a fine film"'),
        ("a server", "llama-server {files} --embedding --pooling {pooling}"),
    ),
    "": (
        ("text", 'llama-completion {files} -n 64 -p "Once upon a time"'),
        ("a server", "llama-server {files}"),
    ),
}


def card(
    base: str, architecture: str, pooling: str, bits: float, types: Mapping[str, str], sizes: tuple
) -> str:
    """Markdown.

    Args:
        base: name of the model that was quantized.
        architecture: llama.cpp's name of it.
        pooling: how it makes one vector of a text, if it does.
        bits: mean bits per parameter of the adapted layers.
        types: the type of each adapted layer.
        sizes: bytes of base.gguf and adapter.gguf.
    """
    files = "-m base.gguf --lora adapter.gguf"
    commands = COMMANDS.get(architecture, COMMANDS[""])
    lines = [
        f"# {base.rstrip('/').rpartition('/')[2] or architecture}, quantized and adapted",
        "",
        f"`base.gguf` ({sizes[0] / 1e6:.1f} MB) is the quantized model, its layers at {bits:.3f} "
        f"bits per parameter; `adapter.gguf` ({sizes[1] / 1e6:.1f} MB) is the LoRA that was made "
        "for exactly these types. The two belong together: the adapter fits no other quantization, "
        "and merging it into the weights and quantizing again would lose what it gives.",
        "",
        "With llama.cpp:",
    ]
    for title, command in commands:
        shown = command.format(files=files, pooling=pooling)
        lines += ["", f"{title}:", "", "```bash", shown, "```"]
    lines += ["", "| type | layers |", "| :-- | --: |"]
    lines += [f"| {kind} | {count} |" for kind, count in Counter(types.values()).most_common()]
    lines += ["", "| layer | type |", "| :-- | :-- |"]
    lines += [f"| {name} | {kind} |" for name, kind in types.items()]
    return "\n".join(lines) + "\n"
