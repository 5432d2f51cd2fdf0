"""Configuration-Aware LoRA (arXiv 2509.25214), as a small library behind a book.

One module an idea; imports run one way::

    configuration <- quantization <- allocation <- adapter <- training <- experiments <- batch, cli
    configuration <- search <- training
"""

__version__ = "0.1.0"
