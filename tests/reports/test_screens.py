"""One screen of every command: 24 lines, 80 columns, nothing cut, on samples and 48 × 128."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rich.console import Console

from moegeo_cli.records import Metric
from moegeo_cli.records.comparison import ComparisonRecord, LayerPair
from moegeo_cli.registry import commands
from moegeo_cli.reports import print_record, render_screen
from tests.reports.html.pages import HOSTILE_MARK, hostile, recorded
from tests.reports.large_run import large_run
from tests.reports.test_formats import terminal

KINDS = ("run", "compare", "check", "experts", "routing")


def widened(record: Any) -> Any:
    """The same with 48 layers of 128 experts."""
    if isinstance(record, ComparisonRecord):
        return dataclasses.replace(record, pairs=tuple(_widened_pair(p) for p in record.pairs))
    if hasattr(record, "checkpoints"):
        wide = [dataclasses.replace(c, layers=_repeated(c.layers)) for c in record.checkpoints]
        return dataclasses.replace(record, checkpoints=tuple(wide))
    return dataclasses.replace(record, layers=_repeated(record.layers))


def _repeated(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        dataclasses.replace(layers[n % len(layers)], layer=n, router=f"layers.{n}", experts=128)
        for n in range(48)
    )


def _widened_pair(pair: Any) -> Any:
    def moved(metric: Metric, n: int) -> Metric:
        return dataclasses.replace(metric, value=(metric.value or 0.0) * (1 + n / 48))

    one = pair.layers[0]
    layers = [
        LayerPair(n, f"layers.{n}", {
            k: dataclasses.replace(d, difference=moved(d.difference, n))
            for k, d in one.differences.items()
        })
        for n in range(48)
    ]  # fmt: skip
    return dataclasses.replace(pair, layers=tuple(layers))


@pytest.fixture
def records(comparison: ComparisonRecord) -> dict[str, Any]:
    lenses = {name: recorded(name) for name in ("check", "experts", "routing")}
    return {"run": large_run(), "compare": comparison, **lenses}


def test_every_command_that_judges_has_one() -> None:
    assert {c.name for c in commands().values() if c.screen} >= {
        "analyze", "compare", "check", "experts", "routing",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 100, 140])
def test_one_screen_whatever_the_model(kind: str, width: int, records: dict[str, Any]) -> None:
    for record in (records[kind], widened(records[kind])):
        text = terminal(print_record, record, width)
        lines = text.rstrip().splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= width
        assert "…" not in text
        assert "--full" in lines[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_screen_of_hostile_text_is_text_and_fits(kind: str, records: dict[str, Any]) -> None:
    text = terminal(print_record, hostile(records[kind]), 80)
    assert len(text.rstrip().splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 80
    assert HOSTILE_MARK in text
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_terminal_without_unicode_has_it_in_ascii(kind: str, records: dict[str, Any]) -> None:
    text = terminal(print_record, records[kind], 80, encoding="ascii")
    assert text.isascii()
    assert "?" not in text.replace("? too few", "")


def test_each_says_its_answer(records: dict[str, Any]) -> None:
    said = {kind: render_screen(record) for kind, record in records.items()}
    assert "A, healthy-run, is the healthier run." in said["compare"]
    assert "HEALTHY" in said["check"]
    assert "No two experts have similar functions: the highest alignment is" in said["experts"]
    assert "merge first: layer" in said["experts"]
    assert "prune first: layer" in said["experts"]
    assert "Routing depends most on the token itself:" in said["routing"]
    for word in ("check", "experts", "routing", "compare"):
        assert said[word].startswith(f"moegeo {word} ")
        assert "mean" in said[word] or " A " in said[word]


def test_full_is_every_table(records: dict[str, Any]) -> None:
    for kind, heading in (("check", "EXPERTS"), ("experts", "MERGE CANDIDATES"),
                          ("routing", "AT A GLANCE"), ("compare", "PER ROUTER")):  # fmt: skip

        def show(record: Any, console: Console) -> None:
            print_record(record, console, full=True)

        assert heading in terminal(show, records[kind], 80)
        assert heading not in render_screen(records[kind])
