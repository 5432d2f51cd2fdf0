"""The list of figures, made from the captions of the chapters as they are rendered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective


class list_of_figures(nodes.General, nodes.Element):
    """Where the list will stand: numbers are known when all pages are read."""


class ListOfFigures(SphinxDirective):
    """``{list-of-figures}``: each figure's number and the first sentence of its caption."""

    def run(self) -> list[nodes.Node]:
        return [list_of_figures()]


class FillList(SphinxPostTransform):
    """Put the figures where the list stands, before references are resolved."""

    default_priority = 5

    def run(self, **options: Any) -> None:
        for place in list(self.document.findall(list_of_figures)):
            place.replace_self(list(self._chapters()))
            # MathJax is loaded where a page had a formula when it was read.
            self.env.get_domain("math").data["has_equations"][self.env.docname] = True

    def _chapters(self) -> Iterator[nodes.Node]:
        """A heading and a list for each page that has figures, in the pages' order."""
        here = self.env.docname
        for page, numbers in sorted(self.env.toc_fignumbers.items()):
            if numbers.get("figure"):
                title = self.env.titles[page].astext()
                uri = self.app.builder.get_relative_uri(here, page)
                figures = self.env.get_doctree(page).findall(nodes.figure)
                by_name = {figure["ids"][0]: figure for figure in figures if figure["ids"]}
                items = nodes.bullet_list()
                for name, number in numbers["figure"].items():
                    items += self._item(by_name[name], f"{uri}#{name}", number)
                yield nodes.rubric("", title)
                yield items

    def _item(self, figure: nodes.figure, uri: str, number: tuple[int, ...]) -> nodes.list_item:
        text = f"Figure {'.'.join(map(str, number))}"
        link = nodes.reference("", text, refuri=uri, internal=True)
        caption = next(figure.findall(nodes.caption))
        line = nodes.paragraph("", "", link, nodes.Text(": "), *first_sentence(caption))
        for cross in line.findall(addnodes.pending_xref):
            cross["refdoc"] = self.env.docname
        return nodes.list_item("", line)


def first_sentence(caption: nodes.Element) -> Iterator[nodes.Node]:
    """A copy of what stands before the first full stop outside of links and formulas."""
    for child in caption.children:
        if not isinstance(child, nodes.Text):
            yield child.deepcopy()
        elif stop := re.search(r"\.(\s|$)", child):
            yield nodes.Text(child[: stop.start() + 1])
            return
        else:
            yield nodes.Text(child)


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    app.add_node(list_of_figures)
    app.add_directive("list-of-figures", ListOfFigures)
    app.add_post_transform(FillList)
