"""Imports point one way, without circles, and only the command line prints.

A text that names a module ("MODULE:NAME", for `registry.load`) counts as an import.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moegeo_cli"
# From the command line down to what everybody may import. A module imports its own floor or lower.
FLOORS = (
    ("cli", "__main__", "moegeo"),
    ("session", "integrations"),
    ("commands",),
    ("measuring",),
    ("models",),
    ("captures",),
    ("replay",),
    ("expert_functions",),
    ("routers",),
    ("sinks",),
    ("checkpoints", "verdict", "reports", "store", "probes", "fisher", "geometry"),
    ("settings",),
    ("scalars",),
    ("options", "records", "explanations"),
    ("keywords", "scorings"),
    ("environment", "errors", "registry", "global_state", "process", "threads", "__init__"),
)
# Rooms of one floor that know nothing of each other.
APART = {"checkpoints", "verdict", "reports", "store", "probes", "fisher", "geometry"}
NO_TORCH = {
    "geometry",
    "verdict",
    "store",
    "reports",
    "records",
    "options",
    "keywords",
    "settings",
    "explanations",
    "scalars",
    "sinks",
}
# Modules whose texts may name a higher floor, and why.
NAME_HIGHER_FLOORS = {
    "moegeo_cli.registry": "it lists the folders of commands, formats, metrics and scorings",
    "moegeo_cli.records.showing": "print(record) shows the record with the code of reports/",
}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NAMES = sorted(MODULES)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(module: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if room(module) in rooms)


def is_light(module: str) -> bool:
    """What a report of a command needs, and what is imported to list the commands."""
    parts = module.split(".")
    light = {"record", "rules", "outline", "screen", "report", "html"}
    return parts[1:2] == ["commands"] and (len(parts) == 3 or parts[-1] in light)


@functools.cache
def named(module: str) -> frozenset[tuple[str, str]]:
    """The modules that a module names in texts, each with the name of an object in it, or ""."""
    tree = ast.parse(MODULES[module].read_text())
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    pairs = (text.partition(":")[::2] for text in texts if isinstance(text, str))
    return frozenset((place, name) for place, name in pairs if place in MODULES)


def named_modules(module: str) -> set[str]:
    """The modules that a module names in texts and reaches; none if it may name higher floors."""
    return set() if module in NAME_HIGHER_FLOORS else {place for place, _ in named(module)}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports, also within functions; not what types alone need."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text()), types=False))


@functools.cache
def names(module: str) -> frozenset[str]:
    """Everything that a module imports, also for types alone."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text()), types=True))


def _imports(tree: ast.AST, *, types: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)
        elif types or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imports(node, types=types)


@pytest.mark.parametrize("module", NAMES)
def test_a_module_imports_its_own_floor_or_a_lower_one(module: str) -> None:
    for name in imports(module):
        if room(module) in NO_TORCH:
            assert name.split(".")[0] not in {"torch", "transformers"}, name
        if is_light(module):
            assert name.split(".")[0] not in {"torch", "transformers", "numpy"}, name
        if room(module) == "geometry":
            assert name.split(".")[0] not in {"rich", "json"}, name
    for name in (imports(module) & MODULES.keys()) | named_modules(module):
        assert floor(name) >= floor(module), f"{module} imports {name}"
        if room(module) in APART and room(name) in APART:
            assert room(name) == room(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in NAMES if named(module)])
def test_a_text_that_names_a_module_names_what_is_there(module: str) -> None:
    for place, name in named(module):
        tree = ast.parse(MODULES[place].read_text())
        bound = {t.id for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign)
                 for t in ast.walk(n) if isinstance(t, ast.Name)}  # fmt: skip
        bound |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in bound | {""}, f"{module} names {place}:{name}"


@pytest.mark.parametrize("module", NAME_HIGHER_FLOORS)
def test_an_exception_is_one(module: str) -> None:
    assert any(floor(place) < floor(module) for place, _ in named(module))


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            # The package itself names for types what it imports on demand.
            found = imports(module) if module == "moegeo_cli" else names(module)
            for name in sorted(found | named_modules(module)):
                if name in MODULES and name != module:
                    walk(name, (*path, module))
            done.add(module)

    for module in NAMES:
        walk(module, ())


@pytest.mark.parametrize("module", NAMES)
def test_only_the_command_line_prints_or_reads_the_environment(module: str) -> None:
    if room(module) in {"cli", "__main__", "global_state", "environment"}:
        return
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "input", "breakpoint"}, node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("os", "environ"), ("sys", "exit")}
