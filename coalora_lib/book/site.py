"""A Sphinx extension: scripts without a network, roles that browsers know, a small site."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from coalora_lib.book.reacting import MARK

#: What a page has, and what it should have. ``doc-biblioentry`` is no longer a role, so that a list
#: of references had no items. All toggles had one name, and not the one that they show.
MENDED = {'role="doc-biblioentry"': 'role="listitem"', ' aria-label="Toggle hidden content"': ""}
#: A signature over several lines, which Sphinx writes as a list of definitions without terms.
SIGNATURE = re.compile(r"<dl>\n((?:<dd><em class=\"sig-param\">.*?</dd>\n)+)</dl>", re.DOTALL)
#: What draws the figures that react; it weighs 5 MB, so only pages that have one load it.
PLOTLY = "plotly.min.js"
#: Numbers sections once all pages are read, so that pages may be read side by side. It does not say
#: so: Sphinx would read them one after another, with a warning.
NUMBERING = "sphinx_multitoc_numbering"
#: What extensions copy into ``_static`` and no page loads: patterns below it.
UNUSED = ("vendor", "locales", "**/*.map", "*webpack-macros.html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    if NUMBERING in app.extensions:
        app.extensions[NUMBERING].parallel_read_safe = True
    app.connect("html-page-context", _mend)
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    body = context.get("body", "")
    for written, meant in MENDED.items():
        body = body.replace(written, meant)
    body = SIGNATURE.sub(_as_lines, body)
    context["body"] = body
    if app.builder.name == "html" and f'class="{MARK}"' in body:  # printed pages keep the pictures
        for script in (PLOTLY, f"{MARK}.js"):
            app.add_js_file(script, loading_method="defer")


def _as_lines(signature: re.Match[str]) -> str:
    lines = signature[1].replace("<dd>", "<span>").replace("</dd>", "</span>")
    return f'<span class="parameters">{lines}</span>'


def _finish(app: Sphinx, error: Exception | None) -> None:
    """Copy the files of MathJax and plotly that pages load, and remove what none does."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    script = static / app.config.mathjax_path
    script.parent.mkdir(exist_ok=True)
    packaged = files("sphinx-mathjax-offline") / "static" / app.config.mathjax_path
    script.write_bytes(packaged.read_bytes())
    if app.builder.name == "html":
        drawing = files("plotly") / "package_data" / PLOTLY
        (static / PLOTLY).write_bytes(drawing.read_bytes())
    for pattern in UNUSED:
        for path in list(static.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
