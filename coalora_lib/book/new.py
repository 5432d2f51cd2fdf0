"""A new chapter: its pair from the template, and its line in the contents."""

from __future__ import annotations

import re
from pathlib import Path

from coalora_lib.book.execution import listed
from coalora_lib.book.pairs import synchronise
from coalora_lib.files import atomic_file

TEMPLATE = Path("book/templates/chapter.md")
_NAME = re.compile(r"(\d\d)_[a-z][a-z0-9_]*")
#: The line of a chapter in ``_toc.yml``.
_LINE = re.compile(r"^( *- file: )book/\d\d_\w+\.ipynb\n", re.MULTILINE)


def new_chapter(root: Path, name: str, title: str | None = None) -> Path:
    """Make ``book/<name>.md`` and ``.ipynb`` and enter them into ``_toc.yml`` as the last chapter.

    Args:
        root: the project's folder.
        name: two digits, an underline, small letters: ``11_pruning``. Also the title without one.
        title: the chapter's heading.

    Returns:
        The .md.

    Raises:
        ValueError: the name or the title cannot be taken, or ``_toc.yml`` has no line of a chapter.
        FileExistsError: a chapter has this name, its number or its label.
        FileNotFoundError: the folder has no ``_toc.yml`` or no template.
    """
    there = listed(root)
    if not (found := _NAME.fullmatch(name)):
        raise ValueError(
            f"name={name!r} must be two digits, an underline and small letters, as 11_pruning"
        )
    label = name.partition("_")[2].replace("_", "-")
    title = label.replace("-", " ").capitalize() if title is None else title.strip()
    if not title or not title.isprintable():
        raise ValueError(f"title={title!r} must be one line of text")
    taken = [*(chapter.stem for chapter in there), *(file.stem for file in root.glob("book/*.*"))]
    for other in sorted(taken):
        if other.startswith(found[1]):
            raise FileExistsError(f"{name}: the number {found[1]} is that of book/{other}")
    for file in sorted(root.glob("book/*.md")):
        if f"({label})=\n" in file.read_text():
            raise FileExistsError(f"{name}: the label {label!r} is that of book/{file.name}")
    text = root / "book" / f"{name}.md"
    template = (root / TEMPLATE).read_text().replace("@title@", title).replace("@label@", label)
    contents = root / "_toc.yml"
    lines = contents.read_text()
    chapters = list(_LINE.finditer(lines))
    if not chapters:
        raise ValueError(f"{contents} has no line like: - file: book/01_name.ipynb")
    last = chapters[-1]
    with atomic_file(text) as file:
        file.write_text(template)
    synchronise(text.with_suffix(".ipynb"))
    with atomic_file(contents) as file:
        entry = f"{last[1]}book/{name}.ipynb\n"
        file.write_text(lines[: last.end()] + entry + lines[last.end() :])
    return text
