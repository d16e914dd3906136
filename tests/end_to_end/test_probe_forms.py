"""A chat, a table, a token file and packed rows give the numbers of the plain sequences."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from moegeo_cli import analyze
from moegeo_cli.probes import Source, load_probe
from moegeo_cli.records import RunRecord
from tests.probes.test_forms import TEMPLATE, with_template
from tests.probes.writers import END, SAME, Sequences, lines, plain, sequences
from tests.tiny_models import save_tiny

IDS = sequences()
WORDS = ["the", "router", "sends", "a", "token", "to", "two", "of", "eight", "experts;", "each",
         "adds", "its", "own", "part"]  # fmt: skip


def run(model: Path, probe: Path) -> RunRecord:
    found = analyze(model, probe=probe, cache=False, baseline="none")
    assert isinstance(found, RunRecord)
    return found


def numbers(record: RunRecord) -> dict[str, float]:
    found = {"loss": record.newest.loss.value}
    for place, layer in enumerate(record.newest.layers):
        found |= {f"{place}.{name}": m.value for name, m in layer.metrics.items()}
        found |= {f"{place}.load.{e}": share for e, share in enumerate(layer.load or ())}
    return {name: value for name, value in found.items() if value is not None}


def close(one: RunRecord, other: RunRecord) -> None:
    a, b = numbers(one), numbers(other)
    assert a.keys() == b.keys()
    assert len(a) > 30
    assert all(math.isclose(a[n], b[n], rel_tol=1e-6, abs_tol=1e-9) for n in a)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("model"), vocab_size=300,
                     eos_token_id=END)  # fmt: skip


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return run(model, plain(IDS, tmp_path_factory.mktemp("probe") / "plain.jsonl"))


@pytest.mark.parametrize("form", [form for form in SAME if form != "JSON Lines"])
def test_numbers_are_those_of_the_plain_sequences(
    form: str, model: Path, expected: RunRecord, tmp_path: Path
) -> None:
    name, write = SAME[form]
    close(run(model, write(IDS, tmp_path / name)), expected)


def test_numbers_of_a_chat_are_those_of_its_tokens_and_labels(model: Path, tmp_path: Path) -> None:
    with_template(model, TEMPLATE)
    chats = [
        {"messages": [{"role": "user", "content": " ".join(WORDS[place : place + 5])},
                      {"role": "assistant", "content": " ".join(WORDS[: place + 3])}]}
        for place in range(8)
    ]  # fmt: skip
    chat = lines(tmp_path / "chat.jsonl", chats)
    found = load_probe(Source(chat), vocab_size=300, tokenizer_dir=model)
    ids: Sequences = [s.input_ids.tolist() for s in found.sequences]  # type: ignore[union-attr]
    by_hand = lines(tmp_path / "plain.jsonl", [
        {"input_ids": own, "labels": s.labels.tolist()}  # type: ignore[union-attr]
        for own, s in zip(ids, found.sequences, strict=True)
    ])  # fmt: skip
    close(run(model, chat), run(model, by_hand))
