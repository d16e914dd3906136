"""docs/reference/layouts.md lists the forms as the readers plan them."""

from __future__ import annotations

from moegeo_cli.checkpoints.quantised.forms.unread import UNREAD
from moegeo_cli.checkpoints.quantised.values import FORMULAS
from tests.forms.table import END, PAGE, START, rows, table


def test_the_page_holds_the_table() -> None:
    held = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert held == table(), "python -m tests.forms.table writes it anew"


def test_the_table_holds_every_formula_and_every_mark() -> None:
    found = rows()
    assert {row.form for row in found if row.form} == set(FORMULAS)
    assert {form for _, form in UNREAD} <= {row.scheme for row in found if row.form is None}
