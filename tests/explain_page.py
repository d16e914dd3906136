"""Docs that are made from moegeo_cli/explanations: `python -m tests.explain_page` writes them.

docs/reference/explanations.md is what `moegeo explain` says of every name. The table of findings.md
and that of errors.md stand in pages that people write, and are replaced there.
"""

from __future__ import annotations

import re
from pathlib import Path

from moegeo_cli.commands.explain.api import explain
from moegeo_cli.explanations.findings import definitions
from moegeo_cli.explanations.lookup import error_rows, names

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PAGE = REFERENCE / "explanations.md"
HEAD = """# Explanations

`python -m tests.explain_page` writes this page from `moegeo_cli/explanations/`. It is what
`moegeo explain NAME` prints for every finding, metric and error.
"""


def page() -> str:
    """The page of all names."""
    parts = [HEAD]
    for kind, found in names().items():
        parts.append(f"\n## {kind.capitalize()}\n")
        for name in found:
            told = explain(name.split(" ")[-1])
            parts.append(f"\n### {told.title}\n\n{_safe(told.headline)}\n\n")
            parts += [f"- **{head}**: {_safe(text)}\n" for head, text in told.parts]
    return "".join(parts)


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*").replace("_", "\\_")


def findings_table() -> str:
    """The rows of findings.md."""
    return "".join(
        f"| {d.id} | `{d.name}` | {d.shipped or d.severity} | {d.holds} |\n"
        for d in sorted(definitions().values(), key=lambda d: d.id)
    )


def errors_table() -> str:
    """The rows of errors.md."""
    return "".join(
        f"| {code} | {row['meaning']} | {row['do']} |\n"
        for code, row in error_rows().items()
        if code != "MG-E000"
    )


def with_rows(text: str, rows: str, begin: str) -> str:
    """A page with the rows of a table that begin so replaced."""
    return re.sub(rf"(?:^\| {begin}[^\n]*\n)+", lambda _: rows, text, count=1, flags=re.MULTILINE)


def pages() -> dict[Path, str]:
    """Every page with what it should hold."""
    findings, errors = REFERENCE / "findings.md", REFERENCE / "errors.md"
    return {
        PAGE: page(),
        findings: with_rows(findings.read_text("utf-8"), findings_table(), "MG"),
        errors: with_rows(errors.read_text("utf-8"), errors_table(), "MG-E"),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
