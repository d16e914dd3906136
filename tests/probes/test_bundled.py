"""The probe that ships with moegeo."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

from moegeo_cli.probes import BUNDLED, Probe
from tests.probes.conftest import save_tokenizer

# Measurements on the bundled probe are compared by this hash: change it knowingly.
SHA256 = "e60daf1c3c181feb20ccf2278c2562c5123563a613a4a0ab53ae24efcf65b4ef"


def test_counts_balance_and_hash(load: Callable[..., Probe]) -> None:
    probe = load(None)
    found = probe.describe()
    assert found["source"] == "bundled"
    assert found["sequences"] >= 256
    assert found["tokens"] >= 65_536
    assert found["loss_tokens"] == found["tokens"] - found["sequences"]
    assert len(found["domains"]) >= 3
    assert len(set(found["domains"].values())) == 1
    tokens = probe.domain_tokens.values()
    assert max(tokens) <= 1.05 * min(tokens)
    assert found["sha256"] == SHA256


def test_domains_are_interleaved(load: Callable[..., Probe]) -> None:
    domains = [s.domain for s in load(None).sequences]
    count = len(set(domains))
    for start in range(0, len(domains), count):
        assert len(set(domains[start : start + count])) == count


def test_a_part_of_it_is_balanced_too(load: Callable[..., Probe]) -> None:
    for budget in (2048, 8192, 30_000):
        probe = load(None, max_tokens=budget)
        counts = Counter(s.domain for s in probe.sequences)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert budget - 264 * 4 < probe.tokens <= budget


def test_it_is_real_text_each_passage_once() -> None:
    lines = BUNDLED.read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"domain", "text"} for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert all("\0" not in row["text"] and row["text"].strip() for row in rows)
    assert b"\r" not in BUNDLED.read_bytes()


def test_it_fits_any_tokenizer(load: Callable[..., Probe], bare: object) -> None:
    from pathlib import Path

    assert isinstance(bare, Path)
    save_tokenizer(bare, size=400)
    probe = load(None, vocab_size=400)
    assert len(probe.sequences) >= 256
    assert 10_000 < probe.tokens < 65_536
