"""Every format as it should be, and every way in which a file can be bad."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moegeo_cli.errors import MoegeoError, ProbeError
from moegeo_cli.probes import Probe
from moegeo_cli.probes.forms import json_lines, opening
from moegeo_cli.probes.forms.plain_text import PASSAGE_CHARACTERS
from moegeo_cli.probes.reading import read_file
from moegeo_cli.probes.rows import HEADER_KEY

Lines = Callable[..., Path]
Load = Callable[..., Probe]


def test_rows_keep_ids_labels_and_domains(lines: Lines, load: Load) -> None:
    path = lines(
        {"input_ids": [1, 2, 3], "labels": [-100, 2, -100], "domain": "a", "source": "ignored"},
        "",
        {"text": "é", "domain": "b"},
        {"input_ids": [9]},
    )
    probe = load(path)
    assert [s.input_ids.tolist() for s in probe.sequences] == [[1, 2, 3], [0xC3, 0xA9], [9]]
    assert [s.domain for s in probe.sequences] == ["a", "b", None]
    assert [s.loss_tokens for s in probe.sequences] == [1, 1, 0]
    assert all(s.input_ids.dtype == np.int64 for s in probe.sequences)
    assert probe.describe() == {
        "source": "probe.jsonl", "sha256": probe.sha256, "sequences": 3, "tokens": 6,
        "loss_tokens": 2, "domains": {"a": 1, "b": 1}, "tokenizer": "bytes",
    }  # fmt: skip
    assert probe.domain_tokens == {"a": 3, "b": 2}
    assert probe.lengths == {"shortest": 1, "median": 2, "longest": 3}


BAD_LINES: list[tuple[Any, tuple[str, ...]]] = [
    ("not json", ("line 2", "not JSON")),
    ('{"input_ids": [1, 2', ("line 2", "not JSON")),
    ("[" * 100_000, ("line 2", "not JSON")),
    ("9" * 5000, ("line 2",)),
    ([1, 2], ("line 2", "no object")),
    ({}, ("line 2", "empty object")),
    ({"ids": [1]}, ("line 2", "'ids'")),
    ({"input_ids": [1], "text": "x"}, ("line 2", "either")),
    ({"input_ids": []}, ("line 2", "no token")),
    ({"input_ids": None}, ("line 2", "no token")),
    ({"input_ids": "1 2"}, ("line 2", "no token")),
    ({"input_ids": [1, 2.0]}, ("line 2", "integers", "2.0")),
    ({"input_ids": [1, True]}, ("line 2", "integers", "True")),
    ({"input_ids": [1, None]}, ("line 2", "integers")),
    ({"input_ids": [[1, 2]]}, ("line 2", "integers")),
    ({"input_ids": [2**70]}, ("line 2", "integers")),
    ('{"input_ids": [NaN]}', ("line 2", "integers")),
    ({"input_ids": [1, 256]}, ("line 2", "256", "vocabulary")),
    ({"input_ids": [1, -1]}, ("line 2", "-1", "vocabulary")),
    ({"input_ids": [1, 2], "labels": [1]}, ("line 2", "2 input_ids and 1 labels")),
    ({"input_ids": [1, 2], "labels": [1, "x"]}, ("line 2", "labels")),
    ({"input_ids": [1, 2], "labels": [1, 999]}, ("line 2", "999", "label")),
    ({"text": ""}, ("line 2", "no token")),
    ({"text": 5}, ("line 2", "5")),
    ({"text": "half \ud800"}, ("line 2", "Unicode")),
    ({"text": "x", "labels": [1]}, ("line 2", "labels")),
    ({"text": "x", "domain": 3}, ("line 2", "domain")),
    ({"text": "x", "domain": ""}, ("line 2", "domain")),
    ({"text": "x", "domain": "\x1b[31mred"}, ("line 2", "domain")),
    ({"text": "x", "domain": "d" * 999}, ("line 2", "domain")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "words"), BAD_LINES, ids=lambda v: repr(v)[:40])
def test_a_bad_line_is_named(row: Any, words: tuple[str, ...], lines: Lines, load: Load) -> None:
    with pytest.raises(ProbeError) as caught:
        load(lines({"input_ids": [1, 2]}, row))
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert caught.value.exit_code == 2
    assert said.isprintable() or "\x1b" not in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", ("no token",)),
        ("a.jsonl", b"\n \n", ("no token",)),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', ("line 1", "JSON")),
        ("a.jsonl", b'{"text": "a\0b"}\n', ("line 1", "JSON")),
        ("a.txt", b"", ("no token",)),
        ("a.txt", b" \n\n \n", ("no token",)),
        ("a.txt", b"one\ntwo \xff\n", ("UTF-8", "line 2")),
        ("a.txt", "utf-16".encode("utf-16-le"), ("UTF-8", "NUL")),
        ("a.bin", bytes(range(256)), ("256", "vocabulary")),
        ("a.safetensors", b"", ("safetensors",)),
        ("a.safetensors", b"\xff" * 64, ("safetensors",)),
    ],
)
def test_a_bad_file(
    name: str, content: bytes, words: tuple[str, ...], tmp_path: Path, load: Load
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError) as caught:
        load(tmp_path / name)
    assert all(word in str(caught.value) for word in (name, *words)), str(caught.value)


def test_what_is_no_file(tmp_path: Path, load: Load) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    for path, word in (
        (tmp_path / "absent.jsonl", "No such file"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe.jsonl", "a pipe"),
        (Path("/dev/zero"), "device"),
        (tmp_path / "dangling.jsonl", "No such file"),
        (Path("nul\0.jsonl"), "null"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(ProbeError, match=word):
            load(path)


def test_sizes_are_bounded(lines: Lines, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines({"input_ids": [1]}, {"input_ids": [1] * 200})
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(ProbeError, match=r"line 2 of probe.jsonl is longer"):
        load(path)
    monkeypatch.setattr(opening, "MAX_BYTES", 100)
    with pytest.raises(ProbeError, match="too large"):
        load(path)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".txt", ".safetensors"]))
def test_any_bytes_are_read_or_refused(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(MoegeoError):
        assert read_file(path).rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["input_ids", "text", "labels", "domain"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(JSON, max_size=3))
def test_any_json_is_read_or_refused(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz-rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.suppress(MoegeoError):
        for row in read_file(path).rows:
            assert (row.text is None) != (row.input_ids is None)


# Plain text


def test_plain_text_is_cut_at_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    paragraphs = [f"{place} " + "word " * 60 for place in range(20)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(paragraphs).encode())
    rows = read_file(path).rows
    assert "\n\n".join(r.text or "" for r in rows) == "\n\n".join(paragraphs)
    assert all(len(r.text or "") <= PASSAGE_CHARACTERS for r in rows)
    assert [r.line for r in rows] == [1 + 6 * place for place in range(len(rows))]


def test_a_long_paragraph_is_cut_between_words(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "several words " * 300
    path.write_text(text)
    rows = read_file(path).rows
    assert "".join(r.text or "" for r in rows) == text
    assert all(set((r.text or "").split()) == {"several", "words"} for r in rows)
    path.write_text("x" * 2500)
    assert [len(r.text or "") for r in read_file(path).rows] == [1000, 1000, 500]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab \n\u00e9", min_size=1, max_size=6000))
def test_no_character_of_a_text_is_lost(text: str) -> None:
    from moegeo_cli.probes.forms.plain_text import _cut_text

    pieces = "".join(r.text or "" for r in _cut_text(text))
    assert "".join(pieces.split()) == "".join(text.split())


# Tables


def test_tensors_lose_their_padding_on_either_side(tmp_path: Path, load: Load) -> None:
    path = tmp_path / "inputs.safetensors"
    ids = np.array([[7, 8, 9, 0], [0, 0, 5, 6], [0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    labels = np.where(mask, ids, -100)
    save_file({"input_ids": ids, "attention_mask": mask, "labels": labels}, path)
    probe = load(path)
    assert [s.input_ids.tolist() for s in probe.sequences] == [[7, 8, 9], [5, 6]]
    assert probe.loss_tokens == 3
    save_file({"input_ids": ids.astype(np.int32)}, path)
    assert load(path).tokens == 12


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pixel_values": np.zeros((2, 3), np.float32)}, "beside its input_ids"),
        ({"input_ids": np.zeros((2, 3), np.float32)}, "integers"),
        ({"input_ids": np.zeros(3, np.int64)}, "integers"),
        ({"input_ids": np.zeros((0, 3), np.int64)}, "no token"),
        ({"attention_mask": np.ones((2, 2), np.int64)}, "attention_mask"),
        ({"attention_mask": np.zeros((2, 3), np.int64)}, "no token"),
        ({"attention_mask": np.array([[1, 0, 1], [1, 1, 1]])}, "gaps"),
        ({"attention_mask": np.array([[1, 2, 1], [1, 1, 1]])}, "separate parts"),
        ({"labels": np.ones((2, 4), np.int64)}, "labels"),
        ({"input_ids": np.full((2, 3), 300)}, "300 in line 1"),
        ({"input_ids": np.full((2, 3), 2**64 - 1, np.uint64)}, "vocabulary"),
        ({"\x1b[31m": np.ones((2, 3), np.int64)}, r"x1b\[31m"),
    ],
)
def test_bad_tensors(change: dict[str, np.ndarray], word: str, tmp_path: Path, load: Load) -> None:
    path = tmp_path / "inputs.safetensors"
    save_file({"input_ids": np.ones((2, 3), np.int64), **change}, path)
    with pytest.raises(ProbeError, match=word):
        load(path)


def test_tensors_without_ids(tmp_path: Path, load: Load) -> None:
    path = tmp_path / "inputs.safetensors"
    for tensors in ({"labels": np.ones((2, 3), np.int64)}, {}):
        save_file(tensors, path)
        with pytest.raises(ProbeError, match="no input of a model"):
            load(path)


def test_bfloat16_tensors_are_refused(tmp_path: Path, load: Load) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "inputs.safetensors"
    save_torch({"input_ids": torch.ones(2, 3, dtype=torch.bfloat16)}, str(path))
    with pytest.raises(ProbeError, match="numbers"):
        load(path)


# The header


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({HEADER_KEY: 2}, "another version"),
        ({HEADER_KEY: None}, "another version"),
        ({HEADER_KEY: 1, "tokenizer": 5}, "tokenizer in the header"),
        ({HEADER_KEY: 1, "vocab_size": "many"}, "vocab_size in the header"),
        ({HEADER_KEY: 1, "vocab_size": True}, "vocab_size in the header"),
        ({HEADER_KEY: 1, "sha256": "0" * 64}, "changed or cut"),
        ({HEADER_KEY: 1, "tokenizer": "0" * 64}, "another tokenizer"),
    ],
)
def test_a_bad_header(header: dict[str, Any], word: str, lines: Lines, load: Load) -> None:
    with pytest.raises(ProbeError, match=word):
        load(lines(header, {"input_ids": [1, 2]}))


def test_a_header_alone_holds_no_token(lines: Lines, load: Load) -> None:
    with pytest.raises(ProbeError, match="no token"):
        load(lines({HEADER_KEY: 1}))


def test_another_vocabulary_is_refused_where_no_tokenizer_tells(lines: Lines, load: Load) -> None:
    path = lines({HEADER_KEY: 1, "tokenizer": "f" * 64, "vocab_size": 64}, {"input_ids": [1, 2]})
    assert load(path, vocab_size=64).tokens == 2
    with pytest.raises(ProbeError, match="64 ids against 65"):
        load(path, vocab_size=65)
