"""Nothing that is read from a file can run code: no pickle, no remote code, YAML loaded safely."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "coalora_lib"
#: Modules whose readers run what a file says.
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
#: Functions that do so whatever module they are reached by.
READERS = {"read_pickle", "unsafe_load", "full_load", "load_all", "unsafe_load_all"}
#: Arguments of other libraries' readers, and the only value that they may have.
ONLY = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}


def faults(text):
    """What in a module's text could run code from a file, each with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for name in [module, *(alias.name for alias in node.names)]:
                if name.partition(".")[0] in PICKLES or name in READERS:
                    yield node.lineno, name
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {each.arg: each.value for each in node.keywords}
            if called in ("yaml.load", "torch.load") and "weights_only" not in given:
                yield node.lineno, called
            if called.rpartition(".")[2] in READERS:
                yield node.lineno, called
            for name in ONLY.keys() & given.keys():
                if getattr(given[name], "value", None) is not ONLY[name]:
                    yield node.lineno, f"{name}={ast.unparse(given[name])}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.full_load(text)",
        "pandas.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=allowed)",
    ],
)
def test_what_runs_code_is_found(text):
    assert list(faults(text))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "numpy.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_what_runs_none_is_not(text):
    assert not list(faults(text))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_runs_code_from_a_file(path):
    assert not list(faults(path.read_text()))
