"""What holds for every file of the project."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKS = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)


def test_no_merge_was_left_half_done():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the project is not in a git repository")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and MARKS.search(path.read_text(errors="ignore")):
            found.append(name)
    assert not found
