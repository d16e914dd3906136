"""Imports point one way, and only the command line prints."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "moegeo_cli"
# room -> rooms of the package that it may import (records, errors, catalogue: anyone)
ALLOWED = {
    "records": set(),
    "checkpoints": set(),
    "probes": set(),
    "fisher": set(),
    "geometry": set(),
    "store": set(),
    "verdict": set(),
    "reports": set(),
    "triage": {"checkpoints", "store", "verdict", "reports", "geometry"},
    "replay": {"checkpoints", "probes", "fisher"},
    "measurement": {
        "checkpoints", "probes", "fisher", "geometry", "replay", "store", "verdict",
    },
}  # fmt: skip
ANYONE = {"records", "errors", "catalogue", "global_state", "process", "threads"}
NO_TORCH = {"records", "geometry", "verdict", "store", "reports"}


@functools.cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        if room in NO_TORCH:
            assert name.split(".")[0] not in {"torch", "transformers"}, name
        if room == "geometry":
            assert name.split(".")[0] not in {"rich", "json"}, name
        if room in ALLOWED and name.startswith("moegeo_cli."):
            target = name.split(".")[1]
            own = {room} | ALLOWED[room] | ANYONE
            assert target in own, f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_reads_the_environment(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in {"cli", "__main__.py", "global_state.py"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "input", "breakpoint"}, node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("os", "environ"), ("sys", "exit")}
