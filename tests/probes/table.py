"""Write the table of docs/reference/probe-files.md: `python -m tests.probes.table`."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.probes.forms import FORMS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "probe-files.md"
START, END = "<!-- forms -->\n", "<!-- end of forms -->"
HEAD = "| form | recognised by | what is read | instead |\n|---|---|---|---|\n"


def table() -> str:
    """The table as it stands in the page."""
    return HEAD + "".join(
        f"| {form.name} | {form.recognised_by} | {form.holds or 'refused'} | {form.instead} |\n"
        for form in FORMS
    )


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"wrote the table of {PAGE}")
