"""What stands around the chapters: lists made while the book is built, and tables kept by hand."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from pybtex.database import parse_file
from sphinx.application import Sphinx

import coalora_lib
from coalora_lib.book.pages.executions import row

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "book"
GLOSSARY = "# Glossary\n\n```{glossary}\nrank\n  The number of *directions*.\n```\n"
CAPTION = "Loss by $x^2$, about 95 % of it. More\nis said below."
CHAPTER = f"""# A chapter

A {{term}}`rank` it has.

```{{figure}} a.png
:name: fig-a
{CAPTION}
```
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A book of one chapter, with a glossary and both lists, as HTML."""
    source = tmp_path_factory.mktemp("source")
    folder = source / "book" / "reference"
    folder.mkdir(parents=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(CHAPTER)])
    nbformat.write(notebook, source / "book" / "01_a.ipynb")
    (source / "book" / "a.png").write_bytes(b"")
    (folder / "glossary.md").write_text(GLOSSARY)
    (folder / "figures.md").write_text("# Figures\n\n```{list-of-figures}\n```\n")
    (folder / "executions.md").write_text("# Times\n\n```{table-of-executions}\n```\n")
    pages = "\n".join(f"reference/{file.stem}" for file in sorted(folder.iterdir()))
    (source / "book" / "index.md").write_text(f"# Book\n\n```{{toctree}}\n01_a\n{pages}\n```\n")
    parts = [f"coalora_lib.book.pages.{name}" for name in ("figures", "executions", "glossary")]
    settings = {
        "extensions": ["myst_nb", *parts],
        "nb_execution_mode": "off",
        "numfig": True,
        "root_doc": "book/index",
        "myst_enable_extensions": ["dollarmath"],
    }
    out = source / "_build"
    app = Sphinx(source, None, out, out / "doctrees", "html", settings, None, warningiserror=True)
    app.build()
    assert app.statuscode == 0
    return out / "book"


def test_the_list_of_figures_has_number_link_and_first_sentence(built):
    text = (built / "reference" / "figures.html").read_text()
    assert '<a class="reference internal" href="../01_a.html#fig-a">Figure 1</a>: Loss by' in text
    assert "about 95 % of it.</p>" in text
    assert "is said below" not in text
    assert "mathjax" in text.lower()


def test_a_term_says_under_the_pointer_what_it_means(built):
    text = (built / "01_a.html").read_text()
    link = re.search(r"<a [^>]*#term-rank[^>]*>", text)[0]
    assert 'title="The number of directions."' in link


def test_the_table_of_executions_has_a_row_for_each_notebook(built):
    text = (built / "reference" / "executions.html").read_text()
    assert re.search(r'href="\.\./01_a\.html".*A chapter', text)
    assert text.count("<tr") == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("1", "executed", "12", "2026-11-27")),
        ({"metadata": {}}, ("1", "executed", "-", "-")),
        ({"count": None}, ("1", "not executed", "12", "2026-11-27")),
        ({"output": "error"}, ("1", "failed", "12", "2026-11-27")),
    ],
    ids=["whole", "no times", "not executed", "failed"],
)
def test_a_row_says_how_a_notebook_was_executed(changes, expected):
    cell = nbformat.v4.new_code_cell("1", execution_count=changes.get("count", 1))
    if "output" in changes:
        cell.outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]
    times = {"papermill": {"duration": 12.3, "end_time": "2026-11-27T02:00:00.1+00:00"}}
    metadata = changes.get("metadata", times)
    assert row(nbformat.v4.new_notebook(cells=[cell], metadata=metadata)) == expected


def test_the_glossary_is_in_the_alphabets_order():
    lines = (PAGES / "reference" / "glossary.md").read_text().splitlines()
    inside = lines[lines.index("```{glossary}") + 1 : -1]
    terms = [line for line in inside if line and not line.startswith(" ")]
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.casefold)


def test_every_paper_has_a_link():
    for key, entry in parse_file(str(PAGES / "references.bib")).entries.items():
        assert {"eprint", "doi", "url"} & set(entry.fields), key


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == coalora_lib.__version__
    paper = parse_file(str(PAGES / "references.bib")).entries["ye2026coalora"]
    (cited,) = citation["references"]
    assert cited["title"] == paper.fields["title"].replace("{", "").replace("}", "")
    names = [" ".join(person.last_names) for person in paper.persons["author"]]
    assert [author["family-names"] for author in cited["authors"]] == names


def test_what_the_table_of_changes_names_is_there():
    text = (PAGES / "about" / "change_and_edit.md").read_text()
    files = re.findall(r"`([\w/]+\.(?:py|md))`", text) + re.findall(r"tests/[\w/.]+\b", text)
    assert len(files) > 15
    for file in files:
        places = (ROOT, ROOT / "coalora_lib", PAGES / "reference")
        assert any((place / file).exists() for place in places), file
