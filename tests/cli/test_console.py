"""The format of a report: what is asked for, else what the file's suffix says."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegeo_cli.cli.console import choose_format
from moegeo_cli.errors import UsageError
from moegeo_cli.options import FactsOutput, LensOutput, RunOutput


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.html", "html"), ("a.MD", "markdown"), ("a.json", "json"), ("a.csv", "csv"),
     ("a.xml", "junit"), ("a.txt", "rich"), ("a", "rich")],
)  # fmt: skip
def test_the_suffix_says_the_format(name: str, said: str) -> None:
    shown = {"format": None, "output": Path(name)}
    choose_format(shown, RunOutput)
    assert shown["format"] == said
    asked = {"format": "github", "output": Path(name)}
    choose_format(asked, RunOutput)
    assert asked["format"] == "github", "what is asked for wins"


def test_a_suffix_that_a_command_does_not_write_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot write csv"):
        choose_format({"format": None, "output": Path("a.csv")}, LensOutput)
    nothing = {"format": None, "output": None}
    choose_format(nothing, FactsOutput)
    assert nothing["format"] == "rich"
