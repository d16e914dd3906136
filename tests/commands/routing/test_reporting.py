"""The report of `moegeo routing` and its sentences, of records whose words are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moegeo_cli.commands.routing import outline, report
from moegeo_cli.commands.routing.record import (
    GeometryRecord,
    RoutingLayerRecord,
    RoutingRecord,
)
from moegeo_cli.records import Check, Coverage, Metric, Metrics

SETTINGS = dict.fromkeys(
    ("pairs", "kept_tokens", "max_tokens", "generate", "dtype", "device", "seed"), 7
)
MEANS = {
    "shared_energy": Metric(0.5), "response_relative": Metric(2.5), "constant_share": Metric(0.25),
    "overlap_unrelated": Metric(0.4, null_value=0.25), "overlap_sequence": Metric(0.05),
    "vocabulary_overlap": Metric(0.15), "domain_gap": Metric(0.02), "rollout_overlap": Metric(0.01),
}  # fmt: skip
FEW = "fewer than 8 sequences"


def geometry(hidden: str, value: float | None, null: float = 0.02) -> GeometryRecord:
    own = Metric(value, null_value=null) if value is not None else Metric(None, reason=FEW)
    return GeometryRecord("across", hidden, "distribution", own, own)


def layer(index: int, *pairs: GeometryRecord, **metrics: Metric) -> RoutingLayerRecord:
    tested = {"domain_p_value": Metric(0.01), "rollout_p_value": Metric(0.2)}
    own: Metrics = {**MEANS, **tested, **metrics}
    return RoutingLayerRecord(
        index, f"model.layers.{index}.mlp.gate", 8, 2, "softmax", own, geometry=pairs
    )


def record(**changes: Any) -> RoutingRecord:
    layers = (
        layer(0, geometry("cosine", 0.6), geometry("visible", 0.8)),
        layer(1, geometry("cosine", 0.4), geometry("visible", None), domain_p_value=Metric(0.5)),
    )
    known: dict[str, Any] = {
        "status": "complete", "versions": {}, "name": "run", "checkpoint": "checkpoint-9",
        "step": 9, "model_type": "qwen3_moe", "settings": SETTINGS, "metrics": MEANS,
        "probe": {"source": "bundled", "tokens": 900, "sequences": 30, "domains": {"a": 1, "b": 2}},
        "coverage": Coverage(2, 2), "layers": layers,
    }  # fmt: skip
    return RoutingRecord(**known | changes)


def test_the_head_says_what_was_measured_and_that_the_probe_is_not_the_users() -> None:
    first, note = outline.head_lines(record(notes=("a note",)))
    assert first == (
        "qwen3_moe, checkpoint-9, probe bundled, not the training text: 900 tokens in 30 "
        "sequences, 2 domains"
    )
    assert note == "a note"
    assert outline.gaps(record()) == []
    assert "1 of 2 routers" in outline.gaps(record(coverage=Coverage(2, 1, {"a": "hash"})))[0]


def test_a_sentence_a_part_with_the_means_of_the_layers() -> None:
    pairs, direction, load, domains, continuation = outline.sentences(record())
    assert "rank correlation of 0.50" in pairs
    assert "(0.02 by chance)" in pairs
    assert pairs.endswith("0.80."), "the mean of those that are known"
    assert "50% of the inputs' energy and 25% of the logits' energy" in direction
    assert "2.50 times" in direction
    assert "40.0% of their experts in common (25.0%" in load
    assert "+5.0% for tokens of the same sequence and +15.0% for tokens of the same id" in load
    assert "+2.0%" in domains
    assert "p < 0.05 in 1 of 2 layers" in domains
    assert "+1.0%" in continuation
    assert "p < 0.05 in 0 of 2 layers" in continuation


@pytest.mark.parametrize(
    ("lost", "left"),
    [("shared_energy", 4), ("overlap_unrelated", 4), ("domain_gap", 4), ("rollout_overlap", 4),
     ("vocabulary_overlap", 5)],
)  # fmt: skip
def test_what_has_no_value_has_no_sentence(lost: str, left: int) -> None:
    unknown = Metric(None, reason=FEW)
    sentences = outline.sentences(record(metrics={**MEANS, lost: unknown}))
    assert len(sentences) == left
    assert not any("None" in line for line in sentences)


def test_rules_that_found_nothing_are_listed_with_why() -> None:
    checks = (
        Check("MG701", "shared-direction", "routing", "found"),
        Check("MG702", "other", "routing", "skipped", "no input"),
        Check("MG703", "third", "routing", "passed"),
    )
    assert outline.checks(record(checks=checks)) == [
        "check MG702 other: no input", "check MG703 third: passed"
    ]  # fmt: skip


@pytest.mark.parametrize("render", [report.render, report.render_markdown])
def test_both_reports_have_the_sentences_and_the_tables(render: Any) -> None:
    text = " ".join(render(record()).replace("\\", "").split())
    for sentence in outline.sentences(record()):
        assert sentence in text
    for title in ("geometry and usage", "shared direction", "experts in common"):
        assert title in text.lower(), title
    assert "0.600" in text
    assert FEW in text, "what is null has its reason"
    assert ("seed 7" in text) == (render is report.render_markdown)


def test_many_layers_are_left_out_of_the_tables_and_that_is_said() -> None:
    own = record().layers[0]
    many = tuple(
        dataclasses.replace(own, layer=n, router=f"model.layers.{n}.mlp.gate") for n in range(40)
    )
    text = report.render(record(layers=many, coverage=Coverage(40, 40)))
    assert "24 more layers" in text
    shown = text[text.index("GEOMETRY") :].split("\n\n")[0]
    rows = [line.split()[0] for line in shown.splitlines() if line.split()[:1][0].isdecimal()]
    assert len(rows) == 16
    assert "more layers" not in report.render(record())


def test_names_of_foreign_things_cannot_draw_on_the_terminal_or_in_markdown() -> None:
    evil = record(model_type="a\x1b[31m|b<script>", notes=("\x1b]0;title\x07",))
    for text in (report.render(evil), report.render_markdown(evil)):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "<script>" not in report.render_markdown(evil)
