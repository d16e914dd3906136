"""The command line as a user runs it, in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from moegeo_cli.cli.app import run


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command."""
    capsys.readouterr()
    code = run([str(a) for a in arguments])
    text = capsys.readouterr()
    return Outcome(code, text.out, text.err)
