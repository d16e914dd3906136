"""One judged run for all sinks, and its first two checkpoints, as they were logged before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from moegeo_cli.records import RunRecord
from tests.reports.large_run import large_run


@pytest.fixture(scope="session")
def run() -> RunRecord:
    """48 routers of 128 experts, at steps 0, 500 and 1,000."""
    return large_run()


@pytest.fixture(scope="session")
def earlier(run: RunRecord) -> RunRecord:
    """The run before its last checkpoint was saved."""
    return dataclasses.replace(run, checkpoints=run.checkpoints[:2], dynamics=run.dynamics[:1])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in which sinks without a place of their own write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
