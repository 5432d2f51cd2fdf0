"""What the library offers to its readers, read off its sources: nothing is imported.

autodoc would import torch, which takes as long as the rest of the build; sphinx-autoapi follows
every base class into torch's own sources, which takes minutes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Of the methods with a name of Python's own, those that are called by it.
CALLED = ("__call__",)


@dataclass
class Item:
    """A function, a class or a value of a module, or a part of a class."""

    kind: str  #: a directive of Sphinx's Python domain
    name: str
    origin: str  #: the module that defines it
    doc: str = ""
    signature: str = ""  #: with its brackets and what it returns
    options: dict[str, str] = field(default_factory=dict)  #: of the directive
    bases: list[str] = field(default_factory=list)  #: of a class, with their modules
    members: list[Item] = field(default_factory=list)  #: of a class


@dataclass
class Module:
    """The documented names of one file."""

    name: str
    doc: str
    body: list[ast.stmt]
    exported: list[str]  #: its ``__all__``
    imported: dict[str, str]  #: each imported name, with its module before it
    lines: list[str]  #: of the file

    def comment(self, node: ast.Assign | ast.AnnAssign) -> str:
        """The comment ``#:`` after a value, or on the lines before it."""
        after = self.lines[(node.end_lineno or node.lineno) - 1].partition("#: ")[2]
        before: list[str] = []
        while (line := self.lines[node.lineno - 2 - len(before)].strip()).startswith("#: "):
            before.insert(0, line.removeprefix("#: "))
        return after or "\n".join(before)


@cache
def read(name: str) -> Module:
    """A module or a package by its name."""
    file = ROOT.parent.joinpath(*name.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    text = file.read_text()
    tree = ast.parse(text)
    exported: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    imported = dict(_imports(tree.body))
    doc, lines = ast.get_docstring(tree) or "", text.splitlines()
    return Module(name, doc, tree.body, exported, imported, lines)


def _imports(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Imported names, those for type checkers included, with their full ones."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.If):
            yield from _imports(node.body)


def packages() -> list[str]:
    """The library and the packages in it."""
    folders = sorted(file.parent for file in ROOT.glob("*/__init__.py"))
    return [ROOT.name, *(f"{ROOT.name}.{folder.name}" for folder in folders)]


def modules(package: str) -> list[str]:
    """The modules of a package, in the alphabet's order, without private ones."""
    files = sorted(ROOT.parent.joinpath(*package.split(".")).glob("*.py"))
    return [f"{package}.{file.stem}" for file in files if not file.stem.startswith("_")]


def exports(package: str) -> Iterator[Item]:
    """What a package's ``__all__`` names, wherever it is defined."""
    module = read(package)
    for name in module.exported:
        if not name.startswith("_"):
            yield find(*module.imported[name].rsplit(".", 1))


def find(module: str, name: str) -> Item:
    """A public name, where it is defined."""
    again = read(module).imported.get(name)
    if again is not None:
        return find(*again.rsplit(".", 1))
    return next(item for item in items(module) if item.name == name)


@cache
def items(name: str) -> Sequence[Item]:
    """The public functions, classes and commented values of a module, as they stand in it."""
    module = read(name)
    found = []
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            found.append(_class(module, node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(_function(module, node, "function"))
        else:
            found.extend(_values(module, node, ""))
    return [item for item in found if not item.name.startswith("_")]


def _function(
    module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str, bound: bool = False
) -> Item:
    """A function, or a method; ``bound`` leaves its first argument out."""
    arguments = node.args
    if bound:
        first = arguments.posonlyargs or arguments.args
        first.pop(0)
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in (*every, arguments.vararg, arguments.kwarg):
        if argument and argument.annotation:
            argument.annotation = _Full(module).visit(argument.annotation)
    signature = f"({ast.unparse(arguments)})"
    if node.returns:
        signature += f" -> {_type(module, node.returns)}"
    return Item(kind, node.name, module.name, ast.get_docstring(node) or "", signature)


def _method(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Item | None:
    """A method as readers see it; None of what sets or deletes a property."""
    decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    if decorators & {"setter", "deleter", "overload"}:
        return None
    if decorators & {"property", "cached_property"}:
        made = {"type": _type(module, node.returns)} if node.returns else {}
        doc = ast.get_docstring(node) or ""
        return Item("property", node.name, module.name, doc, options=made)
    item = _function(module, node, "method", "staticmethod" not in decorators)
    for option in ("classmethod", "staticmethod", "abstractmethod"):
        if option in decorators:
            item.options[option] = ""
    return item


class _Full(ast.NodeTransformer):
    """The library's own names in an annotation, with their modules, since two may have the same.

    Sphinx shows what begins with ``~`` without its module.
    """

    def __init__(self, module: Module) -> None:
        here = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
        self.names = {name: f"{module.name}.{name}" for name in here}
        for name, full in module.imported.items():
            if full.startswith(f"{ROOT.name}."):
                self.names[name] = full

    def visit_Name(self, node: ast.Name) -> ast.Name:
        full = self.names.get(node.id)
        return ast.Name(f"~{full}" if full else node.id)


def _type(module: Module, annotation: ast.expr) -> str:
    return ast.unparse(_Full(module).visit(annotation))


def _class(module: Module, node: ast.ClassDef) -> Item:
    item = Item("class", node.name, module.name, ast.get_docstring(node) or "")
    for base in map(ast.unparse, node.bases):
        item.bases.append(module.imported.get(base, base))
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            made = _method(module, inner)
            if made is None:
                continue
            if made.name == "__init__":
                item.signature = made.signature.removesuffix(" -> None")
                item.doc = "\n\n".join(filter(None, (item.doc, made.doc)))
            elif made.name in CALLED or not made.name.startswith("_"):
                item.members.append(made)
        else:
            item.members += _values(module, inner, node.name)
    return item


def _values(module: Module, node: ast.stmt, owner: str) -> Iterator[Item]:
    """Names that are given a value, or a type: those with a comment, and fields of a class."""
    if isinstance(node, ast.AnnAssign):
        targets: list[ast.expr] = [node.target]
        kind = {"type": _type(module, node.annotation)}
    elif isinstance(node, ast.Assign):
        targets, kind = node.targets, {}
    else:
        return
    for target in targets:
        name = ast.unparse(target)
        doc = module.comment(node)
        if name.isidentifier() and not name.startswith("_") and (doc or (owner and kind)):
            options = dict(kind)
            if owner and node.value is not None:
                options["value"] = ast.unparse(node.value)
            yield Item("attribute" if owner else "data", name, module.name, doc, "", options)
