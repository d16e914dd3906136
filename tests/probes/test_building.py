"""Probes of a person's own texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes import Probe, build_probe
from moegeo_cli.probes.reading import read_file
from moegeo_cli.probes.tokenizing import tokenizer_sha256
from tests.probes.conftest import CORPUS, save_tokenizer

Lines = Callable[..., Path]
Load = Callable[..., Probe]


@pytest.fixture
def texts(tmp_path: Path) -> list[tuple[str | None, Path]]:
    """A long text and a short one."""
    made: list[tuple[str | None, Path]] = []
    for domain, count in (("prose", 60), ("code", 12)):
        path = tmp_path / f"{domain}.txt"
        path.write_text("\n\n".join(f"{domain} {i} é " + "word " * 150 for i in range(count)))
        made.append((domain, path))
    return made


def save(text: str, path: Path) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_domains_take_turns_and_what_is_built_can_be_read(
    texts: list[tuple[str | None, Path]], tmp_path: Path, load: Load
) -> None:
    text = build_probe(texts, max_sequences=20)
    probe = load(save(text, tmp_path / "built.jsonl"))
    assert probe.domains == {"code": 10, "prose": 10}
    assert [s.domain for s in probe.sequences] == ["code", "prose"] * 10
    header = json.loads(text.splitlines()[0])
    assert header["moegeo.probe"] == 1
    assert "tokenizer" not in header
    assert text == build_probe(texts, max_sequences=20)
    assert text != build_probe(texts, max_sequences=20, seed=1)


def test_a_short_domain_gives_all_it_has(texts: list[tuple[str | None, Path]]) -> None:
    rows = [json.loads(line) for line in build_probe(texts, max_sequences=40).splitlines()[1:]]
    assert Counter(r["domain"] for r in rows) == {"prose": 28, "code": 12}


def test_tokens_are_bounded(texts: list[tuple[str | None, Path]], tmp_path: Path) -> None:
    path = save(build_probe(texts, max_tokens=5000), tmp_path / "built.jsonl")
    sizes = [len((r.text or "").encode()) for r in read_file(path).rows]
    assert 4000 < sum(sizes) <= 5000
    with pytest.raises(ProbeError, match="at most 5 tokens"):
        build_probe(texts, max_tokens=5)


def test_a_file_given_twice_counts_once(texts: list[tuple[str | None, Path]]) -> None:
    assert build_probe(texts + texts) == build_probe(texts)


def test_ids_of_a_checkpoints_tokenizer(
    texts: list[tuple[str | None, Path]], tmp_path: Path, bare: Path, load: Load
) -> None:
    save_tokenizer(bare, size=300)
    text = build_probe(texts, tokenizer_dir=bare, vocab_size=300, max_sequences=20)
    header = json.loads(text.splitlines()[0])
    assert header["tokenizer"] == tokenizer_sha256(bare)
    assert header["vocab_size"] == 300
    ids = save(text, tmp_path / "ids.jsonl")
    as_text = save(build_probe(texts, max_sequences=20), tmp_path / "text.jsonl")
    one, other = load(ids, vocab_size=300), load(as_text, vocab_size=300)
    assert one.sha256 == other.sha256
    assert (one.tokenizer, other.tokenizer) == ("ids", header["tokenizer"])
    with pytest.raises(ProbeError, match="another tokenizer"):
        load(ids, tokenizer_dir=tmp_path / "nothing")


def test_bytes_of_a_checkpoint_without_a_tokenizer(
    texts: list[tuple[str | None, Path]], tmp_path: Path, bare: Path, load: Load
) -> None:
    text = build_probe(texts, tokenizer_dir=bare, vocab_size=256, max_sequences=4)
    assert json.loads(text.splitlines()[0])["tokenizer"] == "bytes"
    path = save(text, tmp_path / "ids.jsonl")
    assert load(path).domains == {"code": 2, "prose": 2}
    with pytest.raises(ProbeError, match="another vocabulary"):
        load(path, vocab_size=300)
    save_tokenizer(bare)
    with pytest.raises(ProbeError, match="another tokenizer"):
        load(path)
    with pytest.raises(ProbeError, match="no tokenizer"):
        build_probe(texts, tokenizer_dir=tmp_path / "nothing", vocab_size=300)


def test_labels_and_domains_of_a_source_are_kept(lines: Lines, load: Load, tmp_path: Path) -> None:
    source = lines({"input_ids": [1, 2], "labels": [-100, 2], "domain": "a"}, {"input_ids": [3]})
    path = save(build_probe([(None, source)]), tmp_path / "built.jsonl")
    probe = load(path)
    assert probe.domains == {"a": 1}
    assert probe.loss_tokens == 1
    assert load(save(build_probe([("b", source)]), path)).domains == {"b": 2}


def test_ids_of_different_tokenizers_are_not_mixed(lines: Lines, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "one", size=300)
    row: dict[str, Any] = {"input_ids": [1, 2]}
    known = lines({"moegeo.probe": 1, "tokenizer": "f" * 64}, row, name="known.jsonl")
    unknown = lines({"input_ids": [3]}, name="unknown.jsonl")
    with pytest.raises(ProbeError, match="different tokenizers"):
        build_probe([(None, known), (None, unknown)])
    with pytest.raises(ProbeError, match="another tokenizer"):
        build_probe([(None, known)], tokenizer_dir=tmp_path / "one", vocab_size=300)
    header = json.loads(build_probe([(None, known)]).splitlines()[0])
    assert header["tokenizer"] == "f" * 64


def test_a_cut_or_edited_probe_is_refused(
    texts: list[tuple[str | None, Path]], tmp_path: Path, load: Load
) -> None:
    text = build_probe(texts, max_sequences=8)
    path = tmp_path / "built.jsonl"
    for broken in (
        "".join(text.splitlines(keepends=True)[:-1]),
        text.replace("word", "ward", 1),
    ):
        with pytest.raises(ProbeError, match="changed or cut"):
            load(save(broken, path))
    path.write_bytes(text.replace("\n", "\r\n").encode())  # as a version control may leave it
    assert len(load(path).sequences) == 8


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no passage"):
        build_probe([])
    with pytest.raises(ProbeError, match="cannot be read"):
        build_probe([(None, tmp_path / "absent.txt")])


def test_ids_outside_the_vocabulary_are_not_written(lines: Lines, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "one", size=300)
    with pytest.raises(ProbeError, match="vocabulary has 3 ids"):
        build_probe([(None, lines({"text": CORPUS[0]}))], tokenizer_dir=tmp_path / "one",
                    vocab_size=3)  # fmt: skip
