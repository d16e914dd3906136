"""A user's own limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.errors import UsageError
from moegeo_cli.verdict import load_thresholds


def test_a_file_overrides_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("[thresholds]\nnear-ties = 0.2\n")
    limits = load_thresholds(path)
    assert limits["near-ties"].value == 0.2
    assert limits["logit-explosion"] == load_thresholds()["logit-explosion"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"near-tie": 0.2}, "near-tie"),
        ({"near-ties": "high"}, "not a number"),
        ({"near-ties": True}, "not a number"),
        ({"near-ties": float("nan")}, "not a number"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_thresholds(given)


def test_a_misspelt_name_is_told_its_neighbour() -> None:
    with pytest.raises(UsageError) as caught:
        load_thresholds({"router-colapse": 1})
    assert caught.value.hint == "did you mean router-collapse?"


@pytest.mark.parametrize("text", ["not toml at all [", "thresholds = 3", None])
def test_a_file_that_is_none_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match="is not a file of thresholds"):
        load_thresholds(path)
