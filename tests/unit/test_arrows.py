"""Imports point one way: no package (or module beside the packages) needs one that needs it, not even late."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter

from tests import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "nmt").rglob("*.py")
}


def imported(node):
    """The modules of ours that the code imports, in functions, too, but not for the types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(child, ast.ImportFrom) and child.module:
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            names = [name if name in MODULES else child.module for name in names]
        elif isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        yield from (name for name in names if name in MODULES)
        yield from imported(child)


def package(module):
    return module.split(".")[1] if "." in module else "nmt"


def arrows():
    graph = defaultdict(set)
    for module, path in MODULES.items():
        found = {package(name) for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
        graph[package(module)] |= found - {package(module)}
    return graph


def test_no_circle():
    order = list(TopologicalSorter(arrows()).static_order())  # raises CycleError, which tells the circle
    needed = [order.index(name) for name in ("topk", "search", "objectives", "runs", "commands")]
    assert needed == sorted(needed)


def test_what_stands_alone():
    """The operators import nothing of ours, and the runner next to nothing: it has to run without torch."""
    graph = arrows()
    assert not graph["topk"] and not graph["errors"]
    assert graph["runner"] <= {"errors", "options", "lines", "lock", "manifest", "files"}
