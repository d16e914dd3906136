"""docs/reference/layouts.md lists the layouts as they open."""

from __future__ import annotations

from tests.layouts.table import END, PAGE, START, table


def test_the_page_holds_the_table_of_layouts() -> None:
    held = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert held == table(), "python -m tests.layouts.table writes it anew"
