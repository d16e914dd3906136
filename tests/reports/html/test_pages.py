"""HTML reports without a browser: whole, escaped, small, the same bytes, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable

import pytest

from moegeo_cli.records import RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports import render
from moegeo_cli.reports.html.packing import ALPHABET, linear_level, pack, ratio_level
from tests.reports.html.pages import HOSTILE_MARK, Reader, hostile, recorded, twenty_checkpoints
from tests.reports.large_run import large_run

KINDS = ("run", "single", "comparison", "experts", "routing", "check", "large")


@pytest.fixture
def records(
    run: RunRecord, single: RunRecord, comparison: ComparisonRecord
) -> Callable[[str], AnyRecord]:
    made = {"run": run, "single": single, "comparison": comparison}
    return lambda kind: (
        made[kind] if kind in made else large_run() if kind == "large" else recorded(kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_says_its_subject_first(
    kind: str, records: Callable[[str], AnyRecord]
) -> None:
    record = records(kind)
    text = render(record, "html")
    assert text == render(record, "html")
    page = Reader(text)
    assert page.faults == []
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert names.count("h1") == 1
    assert names.count("main") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {t.removeprefix("#") for t in targets if t} <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_a_page(kind: str, records: Callable[[str], AnyRecord]) -> None:
    page = Reader(render(records(kind), "html"))
    loading = {"src", "srcset", "data", "action", "poster", "background", "formaction"}
    for tag, attributes in page.tags:
        assert not loading & set(attributes), tag
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "img"}
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes, "the page's policy refuses it"
        assert (attributes.get("href") or "#").startswith("#")


def test_the_policy_allows_the_pages_own_script_and_style_alone(run: RunRecord) -> None:
    text = render(run, "html")
    policy = next(
        a["content"] for tag, a in Reader(text).tags if a.get("http-equiv") is not None
    )  # fmt: skip
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "large"])
def test_hostile_strings_stay_text(kind: str, records: Callable[[str], AnyRecord]) -> None:
    text = render(hostile(records(kind)), "html")
    page = Reader(text)
    assert page.faults == []
    assert not any("onerror" in a or "onload" in a for _, a in page.tags)
    scripts = [a for tag, a in page.tags if tag == "script"]
    assert all(a in ({}, {"type": "application/json"}) for a in scripts)
    assert scripts.count({}) == 1
    assert HOSTILE_MARK in "".join(page.words), "it is shown"
    assert "49" not in re.findall(r"alert\(1\)&gt;(\d+)", text), "no template in data is run"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_a_large_run_stays_small() -> None:
    text = render(twenty_checkpoints(), "html")
    assert len(text.encode()) < 400_000
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text)[0])
    assert len(data["packed"]) == 20
    assert len(data["packed"][0]) == 48 * 128 * 3 // 2


def test_packed_values_come_back() -> None:
    levels = [ratio_level(r) for r in (None, 0.0, 0.002, 0.5, 1.0, 2.0, 500.0)]
    text = pack(levels)
    numbers = [ALPHABET.index(c) for c in text]
    back = []
    for a, b, c in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        whole = a << 12 | b << 6 | c
        back += [whole >> 9, whole & 511]
    assert back[: len(levels)] == levels
    for ratio in (0.01, 0.3, 1.0, 1.7, 16.0):
        told = 2 ** ((ratio_level(ratio) - 1) / 509 * 18 - 9)
        assert told == pytest.approx(ratio, rel=0.013)
    assert linear_level(-1.0, -1, 1) == 1
    assert linear_level(1.0, -1, 1) == 510


def test_a_page_shows_the_numbers_of_the_record(run: RunRecord) -> None:
    words = " ".join("".join(Reader(render(run, "html")).words).split())
    assert "Routing is failing." in words
    assert "PARTIAL" not in words
    assert "2 of 3 routers measured" in words
    assert "output_router_logits: false → true (NOT READ as configured)" in words
    assert "0.810 [0.794, 0.826]" in words
    assert "needs three checkpoints" in render(run, "html"), "the reason of a gap"
