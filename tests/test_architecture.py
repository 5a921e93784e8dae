"""The import graph, computed from the sources: no circles, and imports only downwards through the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    "engine.core", "kernels", "trt_models", "engine.recipe", "engine.sources", "engine.stages", "engine.run",
    "engine.score", "engine.decide", "engine.write", "engine.select", "engine.evaluate", "engine.train",
    "engine.recaption", "engine.report", "engine.phases", "profiling", "engine.demo", "api", "engine.cli",
    "profiling.bench",
)  # fmt: skip
"""Packages and modules under `danqing`, lowest first. The benchmarks, which are in no wheel, may import everything."""


@cache
def sources() -> dict[str, Path]:
    """Module name, without `danqing.`, → file."""
    files = [path for top in ("engine", "kernels", "profiling", "trt_models") for path in (ROOT / top).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in names.items()} | {"api": ROOT / "danqing" / "api.py"}


@cache
def graph() -> dict[str, set[str]]:
    """Module → modules that it imports, at the top of the file or inside functions."""
    return {name: set(imports(ast.parse(path.read_bytes()))) & sources().keys() for name, path in sources().items()}


def imports(node: ast.AST) -> Iterator[str]:
    """The modules of ours that a syntax tree imports, except for type checkers."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for statement in node.orelse:
            yield from imports(statement)
    elif isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
        yield from ("api" if name == "danqing" else name.removeprefix("danqing.") for name in named)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        if node.module == "danqing":  # the package itself holds the version; its other names are those of the API
            yield from ("api" if alias.name != "__version__" else "" for alias in node.names)
        elif node.module and node.module.startswith("danqing."):
            module = node.module.removeprefix("danqing.")
            yield from (name if (name := f"{module}.{alias.name}") in sources() else module for alias in node.names)
    elif not isinstance(node, ast.expr):
        for child in ast.iter_child_nodes(node):
            yield from imports(child)


def layer(module: str) -> str:
    """The longest name in `LAYERS` that holds the module; packages above all layers hold nothing."""
    holding = [name for name in LAYERS if f"{module}.".startswith(f"{name}.")]
    return max(holding, key=len, default="")


def test_every_module_is_in_a_layer() -> None:
    assert [module for module in sources() if not layer(module)] == ["engine"]
    assert ast.parse((ROOT / "engine" / "__init__.py").read_bytes()).body[1:] == []  # a docstring


def test_imports_go_down() -> None:
    rank = {name: place for place, name in enumerate(LAYERS)}
    upward = [
        f"{module} imports {imported}"
        for module, several in graph().items()
        for imported in several
        if layer(module) and rank[layer(imported)] > rank[layer(module)]
    ]
    assert upward == []


def test_the_engine_imports_profiling_only_from_the_command_line() -> None:
    found = [
        f"{module} imports {imported}"
        for module, several in graph().items()
        for imported in several
        if layer(imported) == "profiling" and not layer(module).startswith(("profiling", "engine.cli"))
    ]
    assert found == []


def test_there_are_no_circles() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as circle:
        raise AssertionError(" → ".join(circle.args[1])) from None


def test_an_upward_import_and_a_circle_would_be_found() -> None:
    code = """
if TYPE_CHECKING:
    from danqing.engine.cli import main
def f():
    if True:
        import danqing.engine.phases
    from danqing.kernels import portable
    from danqing import curate
"""
    assert list(imports(ast.parse(code))) == ["engine.phases", "kernels.portable", "api"]
