"""The pages on the library: made from the sources, of what readers would call."""

import re
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from sphinx.ext.napoleon import Config

from coalora_lib.book.pages import sources
from coalora_lib.book.pages.library import LEFT_OUT, write_pages

ROOT = Path(__file__).parents[2]
SHOWN = [name for name in sources.packages() if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The text of each page by its package."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("results"))
    config = Config(napoleon_use_ivar=True, library_pages=True)
    app = SimpleNamespace(srcdir=folder, config=config, emit=lambda *_: None)
    write_pages(app)
    return {file.stem: file.read_text() for file in folder.rglob("coalora_lib*.rst")}


@pytest.mark.parametrize("package", SHOWN)
def test_what_a_package_exports_is_on_its_page_with_what_it_says(package, pages):
    exported = {
        name for name in getattr(import_module(package), "__all__", ()) if not name.startswith("_")
    }
    found = {item.name: item for item in sources.exports(package)}
    assert set(found) == exported
    assert all(item.doc for item in found.values())
    if package != sources.ROOT.name:
        for item in found.values():
            assert f":canonical: {item.origin}.{item.name}\n" in pages[package]


def test_private_names_are_on_no_page(pages):
    for text in pages.values():
        assert not re.search(r"^ *\.\. py:\w+:: _(?!_call__)", text, re.MULTILINE)


def test_a_class_has_its_arguments_methods_and_the_comments_of_its_fields(pages):
    proposal = sources.find("coalora_lib.search", "Proposal")
    comments = {member.name: member.doc for member in proposal.members}
    assert comments["restarts"] == "(restarts, d), where the walks began"
    acquisition = sources.find("coalora_lib.search", "Acquisition")
    assert acquisition.signature.startswith("(surrogate: ~coalora_lib.search.surrogate.Surrogate,")
    kinds = {member.name: member.kind for member in acquisition.members}
    assert kinds["gradient"] == kinds["__call__"] == "method"
    assert ":raises ValueError:" in pages["coalora_lib.adapter"]


def test_modules_that_chapters_name_are_on_a_page(pages):
    there = "\n".join(pages.values())
    named = {
        name
        for chapter in ROOT.glob("book/*.md")
        for name in re.findall(r"\{py:mod\}`([\w.]+)`", chapter.read_text())
    }
    assert named
    for name in named:
        assert f".. py:module:: {name}\n" in there, name


def test_of_a_module_that_no_page_names_only_the_exported_names_are_there(pages):
    assert ".. py:function:: collate(" in pages["coalora_lib.training"]  # chapter 3 imports it
    assert "coalora_lib.training.restoring" not in pages["coalora_lib.training"]
