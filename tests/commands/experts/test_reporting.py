"""The report of `moegeo experts` and its sentences, of records whose words are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moegeo_cli.commands.experts import outline, report
from moegeo_cli.commands.experts.record import (
    ExpertLayerRecord,
    ExpertRecord,
    ExpertsRecord,
    MergeCandidate,
    PruneCandidate,
    Trial,
    Verification,
)
from moegeo_cli.records import Check, Coverage, Metric

SETTINGS = dict.fromkeys(
    ("tokens", "weights", "rank", "jacobian_tokens", "kept_tokens", "max_tokens", "dtype",
     "device", "seed"), 7,
)  # fmt: skip
NO_TOKENS = "no two experts have enough tokens"


def layer(index: int, alignment: float | None = 0.25, **changes: Any) -> ExpertLayerRecord:
    metrics = {
        "alignment": Metric(alignment, 0.2, 0.3, 64, null_value=0.03),
        "overlap_input": Metric(0.5, null_value=0.41), "overlap_output": Metric(0.125),
        "asymmetry": Metric(None, reason=NO_TOKENS),
    }  # fmt: skip
    own = ExpertLayerRecord(
        index, f"model.layers.{index}.mlp.gate", 4, 2, "closed form (gated SiLU)", 0, 8, metrics,
        {}, tuple(ExpertRecord(e, 100) for e in range(4)),
    )  # fmt: skip
    return dataclasses.replace(own, **changes)


def record(*layers: ExpertLayerRecord, **changes: Any) -> ExpertsRecord:
    known: dict[str, Any] = {
        "status": "complete", "versions": {}, "name": "run", "checkpoint": "checkpoint-9",
        "step": 9, "model_type": "qwen3_moe", "settings": SETTINGS, "loss": Metric(2.0),
        "probe": {"source": "probe.jsonl", "tokens": 1234, "sequences": 40},
        "coverage": Coverage(2, 2), "layers": layers or (layer(0), layer(1)),
    }  # fmt: skip
    return ExpertsRecord(**known | changes)


VERIFICATION = Verification(
    2, Metric(2.345678),
    (Trial("merge", "ranking", ("layer 1: 0+3",), Metric(0.5, 0.25, 0.75, 64)),
     Trial("prune", "random", ("layer 0: 2", "layer 1: 1"), Metric(-0.125)),
     Trial("prune", "ranking", (), Metric(None))),
    ("two trials are of one seed",),
)  # fmt: skip
GATE = "model.layers.1.mlp.gate"
MERGES = (MergeCandidate(1, (0, 3), Metric(0.9), Metric(0.5), "the same function", GATE),)
PRUNES = (PruneCandidate(0, 2, 0.001, "few tokens", "model.layers.0.mlp.gate"),)


def test_the_head_says_what_was_measured_and_how() -> None:
    words = outline.head(record(layer(0), layer(1, directions=4), notes=("a note",)))
    assert words[0] == "qwen3_moe, checkpoint-9, probe probe.jsonl: 1,234 tokens in 40 sequences"
    assert words[1:] == [
        "closed form (gated SiLU); whole Jacobians; 4 random directions per token", "a note"
    ]  # fmt: skip
    [first, *_] = outline.head(record(checkpoint="."))
    assert "qwen3_moe, probe" in first, "the run itself has no name beside its own"
    soft = outline.head(record(settings={**SETTINGS, "reweighting": True}))
    assert any("whole routing distribution" in line for line in soft)


def test_what_was_not_measured_is_said_by_its_reason() -> None:
    assert outline.gaps(record()) == []
    first, *others = outline.gaps(record(coverage=Coverage(3, 1, {"a": "hash", "b": "hash"})))
    assert first.startswith("1 of 3 routers measured")
    assert others == ["a, b: hash"]


def test_rules_that_found_nothing_are_listed_with_why() -> None:
    checks = (
        Check("MG601", "redundant-experts", "routing", "passed"),
        Check("MG602", "other", "routing", "skipped", "too few tokens"),
        Check("MG603", "third", "routing", "found"),
    )
    assert outline.checks(record(checks=checks)) == [
        "check MG601 redundant-experts: passed", "check MG602 other: too few tokens"
    ]  # fmt: skip


def test_layers_in_which_inputs_and_functions_agree_are_counted() -> None:
    assert outline.asymmetry(record()) == [], "undecided layers count nowhere"
    told = {"seen_alike_done_differently": 1, "seen_differently_done_alike": 2}
    first, second = outline.asymmetry(
        record(layer(0, coexist=True, **told), layer(1, coexist=False, **told), layer(2))
    )
    assert first.startswith("In 1 of 2 layers")
    assert "2 pairs with similar inputs" in second
    assert "4 pairs with different inputs" in second


def test_candidates_and_trials_in_words() -> None:
    found = record(verification=VERIFICATION, merge_candidates=MERGES, prune_candidates=PRUNES)
    assert outline.merges(found) == ["layer 1: 0 + 3: the same function"]
    [prune] = outline.prunes(found)
    assert prune.startswith("layer 0: 2: score ")
    assert prune.endswith(": few tokens")
    assert outline.loss(found).endswith(" before")
    assert [outline.action(t, 2) for t in VERIFICATION.trials] == ["merge 2", "prune 2", "prune 2"]
    assert [outline.change(t) for t in VERIFICATION.trials] == [
        "+0.5000 [+0.2500, +0.7500]", "-0.1250", "–"
    ]  # fmt: skip


@pytest.mark.parametrize("render", [report.render, report.render_markdown])
def test_both_reports_show_all_that_was_found(render: Any) -> None:
    found = record(verification=VERIFICATION, merge_candidates=MERGES, prune_candidates=PRUNES)
    text = render(found)
    for words in ("0.250", "(0.03)", "(0.41)", NO_TOKENS, "0 + 3: the same function",
                  "2: score", "merge 2", "+0.5000 [+0.2500, +0.7500]", "layer 0: 2; layer 1: 1",
                  "two trials are of one seed", "1,234 tokens"):  # fmt: skip
        assert words in text, words
    assert ("seed 7" in text) == (render is report.render_markdown)
    bare = render(record())
    assert "verified" not in bare.lower()
    assert "candidates" not in bare.lower()


def test_names_of_foreign_things_cannot_draw_on_the_terminal_or_in_markdown() -> None:
    evil = record(model_type="a\x1b[31m|b<script>", notes=("\x1b]0;title\x07",))
    for text in (report.render(evil), report.render_markdown(evil)):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "<script>" not in report.render_markdown(evil)
