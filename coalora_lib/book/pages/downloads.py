"""A chapter's text as a download, beside its notebook, which the theme offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from sphinx.application import Sphinx

#: The theme's menu of downloads.
MENU = "download-buttons"


def add_text(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Write a notebook's cells as MyST Markdown, and enter it into the page's menu."""
    if context.get("page_source_suffix") != ".ipynb":
        return
    file = Path(app.outdir, "_sources", f"{page}.md")
    file.parent.mkdir(parents=True, exist_ok=True)
    jupytext.write(jupytext.read(app.env.doc2path(page)), file, fmt="md:myst")
    button = {
        "type": "link",
        "url": context["pathto"](f"_sources/{page}.md", 1),
        "text": ".md",
        "icon": "fas fa-file",
        "tooltip": "Download the text",
        "label": "download-text-button",
    }
    for group in context["header_buttons"]:
        if group["label"] == MENU:
            group["buttons"].insert(1, button)


def setup(app: Sphinx) -> None:
    """Add to the menu after the theme has made it."""
    app.connect("html-page-context", add_text, priority=600)
