"""What a chapter prints, and the raw files of its records, for tests that compute one from the
other."""

import json
import re
from pathlib import Path

BOOK = Path(__file__).parents[2] / "book"


def raw_records(folder):
    """Contents of all records of a folder of results."""
    found = [json.loads(path.read_text()) for path in (BOOK / "results" / folder).glob("*.json")]
    assert found, "there are no records"
    return found


def prose_of(chapter):
    """The text of a chapter's .md outside its cells of code, on one line."""
    text = (BOOK / f"{chapter}.md").read_text()
    text = re.sub(r"^```\{code-cell\}.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return " ".join(text.split())


def printed_by(chapter):
    """Tables of the page by the first cell of their head: head and rows; and the text outputs."""
    tables, texts = {}, []
    for cell in json.loads((BOOK / f"{chapter}.ipynb").read_text())["cells"]:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/markdown", output.get("text", ())))
            texts.append(text.replace("\N{NO-BREAK SPACE}", " "))
            lines = [line.strip("| ").split(" | ") for line in texts[-1].splitlines()]
            if lines and len(lines[0]) > 1:
                tables[lines[0][0]] = lines[0], {line[0]: line[1:] for line in lines[2:]}
    return tables, texts
