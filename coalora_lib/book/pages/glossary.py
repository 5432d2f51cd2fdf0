"""A term of the glossary shows its meaning under the pointer, as the browser's own hover text."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx

#: The page of the glossary.
PAGE = "book/reference/glossary"


def add_titles(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Give each link to a term the definition as its title."""
    links = [
        link
        for link in doctree.findall(nodes.reference)
        if "#term-" in link.get("refuri", "") and page != PAGE
    ]
    if links:
        meanings = dict(_meanings(app))
        for link in links:
            link["reftitle"] = meanings[link["refuri"].rpartition("#")[2]]


def _meanings(app: Sphinx):
    """Each term's anchor and its definition, as plain text."""
    for item in app.env.get_doctree(PAGE).findall(nodes.definition_list_item):
        meaning = " ".join(item[-1].astext().split())
        for term in item.findall(nodes.term):
            yield from ((name, meaning) for name in term["ids"])


def setup(app: Sphinx) -> None:
    """Give links their titles when a page is written."""
    app.connect("doctree-resolved", add_titles)
