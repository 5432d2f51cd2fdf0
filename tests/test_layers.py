"""The contracts of pyproject.toml hold, and an import against them is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("files.py", "", ""),
        ("files.py", "import coalora_lib.cli", "files is not allowed to import coalora_lib.cli"),
        ("search/pareto.py", "import transformers", "search is not allowed to import transformers"),
        ("records/schema.py", "import coalora_lib.experiments", "import coalora_lib.experiments"),
        (
            "experiments/runner.py",
            "import matplotlib",
            "experiments is not allowed to import matplo",
        ),
    ],
    ids=["as it is", "upward", "models", "records", "figures"],
)
def test_the_layers(module, line, found, tmp_path):
    shutil.copytree(
        ROOT / "coalora_lib",
        tmp_path / "coalora_lib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "coalora_lib" / module).open("a") as file:
        file.write(line + "\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(line), done.stdout
    assert found in done.stdout
