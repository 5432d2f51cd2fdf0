"""The pages on the library: one for each package, with its exported names.

They also show the modules that a page of the book names, with all their public names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

from coalora_lib.book.pages import sources
from coalora_lib.book.pages.sources import Item

#: Where the pages are, in the book's sources.
PAGES = Path("book/reference/library")
#: Not for readers: the command line has a page of its own.
LEFT_OUT = {"coalora_lib.cli", "coalora_lib.files", "coalora_lib.validation"}
_NAMED = re.compile(r"(coalora_lib(?:\.\w+)*)(?: import (\w+))?")


def setup(app: Sphinx) -> None:
    """Write the pages before Sphinx looks for its sources."""
    app.setup_extension("sphinx.ext.napoleon")
    app.add_config_value("library_pages", True, "env", [bool])
    app.connect("builder-inited", write_pages)


def write_pages(app: Sphinx) -> None:
    """One file of reStructuredText a package, unless ``library_pages`` is False."""
    if not app.config.library_pages:
        return
    named = _named(Path(app.srcdir))
    folder = Path(app.srcdir) / PAGES
    folder.mkdir(parents=True, exist_ok=True)
    for package in sources.packages():
        if package not in LEFT_OUT:
            lines = _page(app, package, named)
            (folder / f"{package}.rst").write_text("\n".join(lines) + "\n")


def _named(source: Path) -> set[str]:
    """The library's modules that a page's text or code names, among other names."""
    found = set()
    for page in source.glob("book/**/*.*"):
        if page.suffix in (".md", ".ipynb"):
            for module, name in _NAMED.findall(page.read_text()):
                found |= {module, f"{module}.{name}"}
    return found


def _page(app: Sphinx, package: str, named: Set[str]) -> Iterator[str]:
    yield from (*_heading(package, "="), f".. py:module:: {package}", "")
    yield from (sources.read(package).doc, "")
    exported = list(sources.exports(package))
    if package == sources.ROOT.name:
        yield from _overview(exported)
    else:
        yield from _names(package, exported)
        for item in exported:
            yield from _described(app, item, item.origin)
    there = {(item.origin, item.name) for item in exported}
    for module in sources.modules(package):
        items = [i for i in sources.items(module) if (module, i.name) not in there]
        if items and module in named - LEFT_OUT:
            # A name that its package exports may be called like its module.
            known = module in {f"{package}.{item.name}" for item in exported}
            here = "currentmodule" if known else "module"
            yield from (*_heading(module, "-"), f".. py:{here}:: {module}", "")
            yield from (sources.read(module).doc, "")
            for item in items:
                yield from _described(app, item)


def _heading(name: str, line: str) -> tuple[str, ...]:
    return name, line * len(name), ""


def _overview(exported: Sequence[Item]) -> Iterator[str]:
    """What can be imported from the library itself, and its packages."""
    for item in exported:
        yield f"- :class:`{sources.ROOT.name}.{item.name} <{item.origin}.{item.name}>`"
    yield ""
    yield from _listed(
        (f":doc:`{package} <{package}>`", sources.read(package).doc)
        for package in sources.packages()[1:]
        if package not in LEFT_OUT
    )


def _names(package: str, exported: Sequence[Item]) -> Iterator[str]:
    """The names that a package exports, as links."""
    if exported:
        yield from ("To be imported from the package itself:", "")
        yield from _listed((f":obj:`~{package}.{item.name}`", item.doc) for item in exported)


def _listed(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A table of links, and the first sentences of what they lead to."""
    yield from (".. list-table::", "   :widths: auto", "")
    for link, doc in rows:
        first = re.split(r"(?<=\.)\s", " ".join(doc.partition("\n\n")[0].split()), maxsplit=1)[0]
        yield from (f"   * - {link}", f"     - {first}")
    yield ""


def _described(app: Sphinx, item: Item, origin: str = "", depth: int = 0) -> Iterator[str]:
    """A directive of the Python domain; ``origin`` is where an exported name is defined."""
    text = [f".. py:{item.kind}:: {item.name}{item.signature}"]
    if origin:
        text.append(f"   :canonical: {origin}.{item.name}")
    text += [f"   :{name}: {value}".rstrip() for name, value in item.options.items()]
    text.append("")
    if item.bases:
        text += ["   Bases: " + ", ".join(f":class:`~{base}`" for base in item.bases), ""]
    doc = GoogleDocstring(item.doc, app.config, app, item.kind, item.name).lines()
    text += [f"   {line}".rstrip() for line in "\n".join(doc).splitlines()]
    text.append("")
    yield from ("   " * depth + line if line else "" for line in text)
    for member in item.members:
        if member.kind != "attribute" or member.doc or "Attributes:" not in item.doc:
            yield from _described(app, member, f"{origin}.{item.name}" if origin else "", depth + 1)
