"""The rendered book's own extension of Sphinx: pages that are made from the code at build time."""

from typing import Any

from sphinx.application import Sphinx

from coalora_lib.book.pages import commands, downloads, executions, figures, glossary, library


def setup(app: Sphinx) -> dict[str, Any]:
    """What ``_config.yml`` names among its extensions."""
    for part in (library, commands, figures, executions, glossary, downloads):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
