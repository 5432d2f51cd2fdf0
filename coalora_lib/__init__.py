"""Configuration-Aware LoRA (arXiv 2509.25214), as a small library behind a book.

One module an idea; imports run one way::

    configuration <- quantization <- allocation <- adapter <- training <- experiments <- book <- cli
    configuration <- search <- training
"""

import logging

# PEFT imports it, and on some processors it warns, at import, of an optional package.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
