"""Every form of a probe file: the same sequences out of each, or a refusal that says what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from moegeo_cli.errors import ProbeError, UsageError
from moegeo_cli.probes import Probe, Sequence, Source, load_probe
from moegeo_cli.probes.forms import FORMS, arrow, streams
from moegeo_cli.probes.forms import parquet as parquet_form
from moegeo_cli.probes.packing import cut_row
from moegeo_cli.probes.reading import read_file
from moegeo_cli.probes.rows import ReadOptions
from tests.probes.conftest import save_tokenizer
from tests.probes.table import END as TABLE_END
from tests.probes.table import PAGE, START, table
from tests.probes.writers import END, FILES, SAME, lines, sequences, tokens

Load = Callable[..., Probe]


@pytest.mark.parametrize("form", SAME)
def test_each_form_of_the_same_sequences_is_the_same_probe(
    form: str, tmp_path: Path, load: Load
) -> None:
    ids = sequences()
    name, write = SAME[form]
    found = load(write(ids, tmp_path / name), ends=(END,))
    assert [s.input_ids.tolist() for s in found.sequences] == ids
    assert found.sha256 == Probe.of((Sequence(np.array(own)) for own in ids), "").sha256


def test_every_form_that_is_read_is_written_here(tmp_path: Path) -> None:
    written = set()
    for place, (name, write) in enumerate(SAME.values()):
        (folder := tmp_path / str(place)).mkdir()
        path = write(sequences(), folder / name)
        written.add(next(f.name for f in FORMS if f.matches(path)))
    others = {"CSV, TSV", "plain text, UTF-8"}  # these hold no ids; their own tests are elsewhere
    assert {form.name for form in FORMS if form.read} == written | others


def test_the_page_holds_the_table() -> None:
    held = PAGE.read_text(encoding="utf-8").split(START)[1].split(TABLE_END)[0]
    assert held == table(), "python -m tests.probes.table writes it anew"


@pytest.mark.parametrize("form", [f for f in FORMS if f.read is None], ids=lambda f: f.name)
def test_a_form_that_is_not_read_says_what_to_do(form: Any, tmp_path: Path, load: Load) -> None:
    names = [word.strip("`") for word in form.recognised_by.split(", ") if word.startswith("`.")]
    path = tmp_path / f"a{names[0] if names else '.txt'}"
    path.write_bytes("some words".encode("utf-16"))
    with pytest.raises(ProbeError) as caught:
        load(path)
    assert caught.value.hint == form.instead
    assert caught.value.found == form.name


# Chats

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
TURNS = [("user", "two experts?"), ("assistant", "two of eight."), ("user", "é!"),
         ("assistant", "yes")]  # fmt: skip


def with_template(folder: Path, template: str) -> Path:
    save_tokenizer(folder, size=270)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def expected(folder: Path) -> tuple[list[int], list[int]]:
    """Token by token: what is told of the assistant is predicted, and nothing else."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text, told = "", []
    for role, content in TURNS:
        text += f"<{role}>{content}</s>"
        told += [False] * len(f"<{role}>") + [role == "assistant"] * len(f"{content}</s>")
    found = tokenizer.encode(text, add_special_tokens=False)
    labels = [t if told[start] else -100 for t, (start, _) in
              zip(found.ids, found.offsets, strict=True)]  # fmt: skip
    return found.ids, labels


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by prompt", "by mark"])
@pytest.mark.parametrize("shape", ["messages", "conversations", "a key of one's own"])
def test_a_chat_is_rendered_and_the_assistant_is_predicted(
    template: str, shape: str, bare: Path, tmp_path: Path
) -> None:
    with_template(bare, template)
    turns: list[dict[str, str]] = [{"role": r, "content": c} for r, c in TURNS]
    if shape == "conversations":
        turns = [{"from": "human" if r == "user" else "gpt", "value": c} for r, c in TURNS]
    key = shape if shape in ("messages", "conversations") else "dialogue"
    path = lines(tmp_path / "chat.jsonl", [{key: turns, "domain": "help", "id": 7}])
    source = Source(path, text_key=key if key == "dialogue" else None)
    probe = load_probe(source, vocab_size=None, tokenizer_dir=bare)
    ids, labels = expected(bare)
    [sequence] = probe.sequences
    assert isinstance(sequence, Sequence)
    assert sequence.labels is not None
    assert sequence.input_ids.tolist() == ids
    assert sequence.labels.tolist() == labels
    assert 0 < probe.loss_tokens < len(ids)
    assert sequence.domain == "help"


def test_a_template_gets_tools_and_a_system_text(bare: Path, tmp_path: Path, load: Load) -> None:
    with_template(bare, "{{ tools[0].name }}|" + TEMPLATE)
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
           "system": "calm", "tools": '[{"name": "search"}]'}  # fmt: skip
    probe = load(lines(tmp_path / "a.jsonl", [row]), vocab_size=None)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bare / "tokenizer.json"))
    text = tokenizer.decode(probe.sequences[0].input_ids.tolist())  # type: ignore[union-attr]
    assert text == "search|<system>calm</s><user>a</s><assistant>b</s>"


@pytest.mark.parametrize(
    ("template", "messages", "word"),
    [
        (None, [{"role": "user", "content": "a"}], "no chat template"),
        (TEMPLATE, [], "not a list of messages"),
        (TEMPLATE, ["a"], "not a list of messages"),
        (TEMPLATE, [{"content": "a"}], "names no role"),
        (TEMPLATE, [{"from": "narrator", "value": "a"}], "speaker"),
        (TEMPLATE, [{"role": "user", "content": [{"type": "image"}]}], "not text"),
        (TEMPLATE, [{"role": "user", "content": "\ud800"}], "Unicode"),
        ("{{ raise_exception('roles') }}", [{"role": "user", "content": "a"}], "roles"),
        ("{{ ''.__class__.__mro__ }}", [{"role": "user", "content": "a"}], "template"),
        ("{{ messages | length }}", [{"role": "assistant", "content": "a"}] * 2, "differently"),
    ],
)
def test_a_chat_that_cannot_be_shown_is_refused(
    template: str | None, messages: list[Any], word: str, bare: Path, tmp_path: Path, load: Load
) -> None:
    save_tokenizer(bare, size=270) if template is None else with_template(bare, template)
    with pytest.raises(ProbeError, match=word):
        load(lines(tmp_path / "a.jsonl", [{"messages": messages}]), vocab_size=None)


# Masks, positions, segments


@pytest.mark.parametrize(
    ("fields", "cut"),
    [
        ({}, [[0, 1, 2, 3, 4, 5]]),
        ({"attention_mask": [0, 1, 1, 1, 0, 0]}, [[1, 2, 3]]),
        ({"attention_mask": [0] * 6}, []),
        ({"attention_mask": [1, 1, 2, 2, 0, 0]}, [[0, 1], [2, 3]]),
        ({"segment_ids": [0, 0, 0, 1, 1, 1]}, [[0, 1, 2], [3, 4, 5]]),
        ({"segment_ids": [1, 1, 2, 2, 2, 0]}, [[0, 1], [2, 3, 4]]),
        ({"position_ids": [0, 1, 0, 1, 2, 3]}, [[0, 1], [2, 3, 4, 5]]),
        ({"position_ids": [1, 1, 0, 1, 2, 3], "attention_mask": [0, 0, 1, 1, 1, 1]},
         [[2, 3, 4, 5]]),
        ({"position_ids": [0, 1, 2, 0, 1, 2], "seq_lengths": [3, 3]}, [[0, 1, 2], [3, 4, 5]]),
        ({"cu_seqlens": [0, 4, 6]}, [[0, 1, 2, 3], [4, 5]]),
        ({"token_type_ids": [0] * 6}, [[0, 1, 2, 3, 4, 5]]),
    ],
)  # fmt: skip
def test_a_row_is_cut_as_its_fields_say(fields: dict[str, list[int]], cut: list[list[int]]) -> None:
    arrays = {name: np.array(values) for name, values in fields.items()}
    assert [p.input_ids.tolist() for p in cut_row(np.arange(6), arrays, "row 1")] == cut


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"attention_mask": [1, 0, 1, 1, 1, 1]}, "gaps"),
        ({"attention_mask": [1, -1, 1, 1, 1, 1]}, "-1 in attention_mask"),
        ({"attention_mask": [1, 2, 1, 1, 1, 1]}, "separate parts"),
        ({"attention_mask": [1, 1]}, "another length"),
        ({"segment_ids": [1, 2, 1, 1, 1, 1]}, "separate parts"),
        ({"position_ids": [1, 2, 3, 4, 5, 6]}, "count up from 0"),
        ({"position_ids": [0, 2, 4, 6, 8, 10]}, "count up from 0"),
        ({"position_ids": [0, 1, 2, 3, 0, 0]}, "several zeros"),
        ({"position_ids": [0, 1, 2, 3, 4, 5], "segment_ids": [0, 0, 0, 1, 1, 1]}, "count up"),
        ({"seq_lengths": [3, 4]}, "add up"),
        ({"cu_seqlens": [0, 4]}, "add up"),
        ({"cu_seqlens": [0, 6, 4, 6]}, "add up"),
        ({"loss_mask": [0, 1, 2, 1, 1, 1]}, "other than 0 and 1"),
        ({"token_type_ids": [0, 0, 0, 1, 1, 1]}, "token_type_ids"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fields: dict[str, list[int]], word: str, tmp_path: Path, load: Load
) -> None:
    path = lines(tmp_path / "a.jsonl", [{"input_ids": [1] * 6, **fields}])
    with pytest.raises(ProbeError) as caught:
        load(path)
    assert word in str(caught.value)
    assert "line 1" in str(caught.value)


def test_masks_reach_the_labels(tmp_path: Path, load: Load) -> None:
    row = {"input_ids": [1, 2, 3, 4, 5, 9, 9], "attention_mask": [1, 1, 1, 1, 1, 0, 0],
           "loss_mask": [0, 0, 1, 1, 0, 0, 0]}  # fmt: skip
    [found] = load(lines(tmp_path / "a.jsonl", [row])).sequences
    assert isinstance(found, Sequence)
    assert found.labels is not None
    assert found.labels.tolist() == [-100, -100, 3, 4, -100]
    with pytest.raises(ProbeError, match="attention_mask, but no input_ids"):
        load(lines(tmp_path / "a.jsonl", [{"text": "ab", "attention_mask": [1, 1]}]))


# Keys


def test_keys_are_named_by_the_user(tmp_path: Path, bare: Path) -> None:
    rows = [{"content": "ab", "meta": {"language": "de"}, "text": "no"},
            {"content": "c", "meta": {"language": "fr"}, "text": "no"}]  # fmt: skip
    path = lines(tmp_path / "a.jsonl", rows)
    source = Source(path, "content", "meta.language")
    probe = load_probe(source, vocab_size=256, tokenizer_dir=bare)
    assert probe.domains == {"de": 1, "fr": 1}
    assert [s.tokens for s in probe.sequences] == [2, 1]
    table_path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table_path)
    other = load_probe(Source(table_path, "content", "meta.language"), vocab_size=256,
                       tokenizer_dir=bare)  # fmt: skip
    assert other.sha256 == probe.sha256
    for source, word in (
        (Source(path, "body"), "has no body"),
        (Source(path, "content", "lang"), "has no lang"),
    ):
        with pytest.raises(ProbeError, match=word):
            load_probe(source, vocab_size=256, tokenizer_dir=bare)
    with pytest.raises(UsageError, match="none is given"):
        Source(None, "content")
    many = lines(tmp_path / "many.jsonl", [{"text": "a", "url": str(n)} for n in range(300)])
    with pytest.raises(ProbeError, match="too many domains"):
        read_file(many, ReadOptions(domain_key="url"))


def test_tables_of_text(tmp_path: Path, load: Load) -> None:
    path = tmp_path / "a.csv"
    path.write_text('domain,text,n\ncode,"x, y",1\nprose,"two\nlines",2\nprose,,3\n')
    probe = load(path)
    assert [bytes(s.input_ids.tolist()) for s in probe.sequences] == [b"x, y", b"two\nlines"]  # type: ignore[union-attr]
    assert probe.domains == {"code": 1, "prose": 1}
    assert probe.notes == ("a.csv: 1 rows without text or tokens are left out",)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ProbeError, match="no column of text"):
        load(path)


# Large files, and damaged ones


def test_a_part_of_a_large_file_is_read_evenly_and_said(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = sequences(tuple(range(20, 60)) * 10)
    for module in (streams, parquet_form, arrow):
        monkeypatch.setattr(module, "READ_BYTES", 8192)
    monkeypatch.setattr(streams, "STRETCHES", 4)
    flat = load(tokens(ids, tmp_path / "a.bin", "<u2"), ends=(END,))
    whole = {tuple(own) for own in ids}
    assert 30 < len(flat.sequences) < len(ids)
    assert all(tuple(s.input_ids.tolist()) in whole for s in flat.sequences)  # type: ignore[union-attr]
    assert "4 parts evenly spread" in flat.notes[1]
    for name, write in (("a.parquet", SAME["Parquet"][1]), ("a.arrow", SAME["Arrow stream"][1])):
        found = load(write(ids, tmp_path / name))
        assert 20 < len(found.sequences) < len(ids)
        assert all(tuple(s.input_ids.tolist()) in whole for s in found.sequences)  # type: ignore[union-attr]
        assert "evenly spread" in found.notes[0]
        assert found.sha256 == load(tmp_path / name).sha256


def test_a_stream_without_ends_is_cut_into_pieces(tmp_path: Path, load: Load) -> None:
    path = tokens([list(range(100)) * 11], tmp_path / "a.bin", "<u2")
    assert [s.tokens for s in load(path).sequences] == [512, 512, 76]
    assert [s.tokens for s in load(path, max_length=400).sequences] == [400, 400, 300]
    assert "pieces of 512 tokens" in load(path).notes[0]


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.bin", b"\x01\x00\x02", "uint16"),
        ("a.npy", b"\x93NUMPY\x01\x00 nothing", "array"),
        ("a.parquet", b"PAR1 nothing PAR1", "Parquet"),
        ("a.arrow", b"ARROW1 nothing", "Arrow"),
        ("a.jsonl.gz", b"\x1f\x8b nothing", "decompressed"),
        ("a.jsonl.zst", b"nothing at all", "decompressed"),
        ("a.csv", b'text\n"\n', "table|no token"),
        ("a.json", b"[1, 2", "not JSON"),
    ],
)
def test_damaged_files_are_named(
    name: str, data: bytes, word: str, tmp_path: Path, load: Load
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ProbeError, match=word):
        load(tmp_path / name)


def test_a_megatron_index_that_lies_is_refused(tmp_path: Path, load: Load) -> None:
    path = SAME["Megatron"][1](sequences(), tmp_path / "a.bin")
    index = (tmp_path / "a.idx").read_bytes()
    for changed in (index[:60], index[:9] + b"\x02" + index[10:], index[:-8] + b"\xff" * 8,
                    index[:34] + b"\xff\xff\xff\x7f" + index[38:]):  # fmt: skip
        (tmp_path / "a.idx").write_bytes(changed)
        with pytest.raises(ProbeError, match="not of one data set"):
            load(path)


def test_an_absent_library_is_named(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [SAME[f][1](sequences(), tmp_path / SAME[f][0]) for f in ("Parquet", "Arrow stream")]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in paths:
        with pytest.raises(ProbeError, match=r"moegeo\[probes\]"):
            load(path)


def test_a_folder_names_what_to_give(tmp_path: Path, load: Load) -> None:
    (tmp_path / "data").mkdir()
    SAME["Parquet"][1](sequences(), tmp_path / "data" / "train.parquet")
    with pytest.raises(ProbeError, match=r"--probe .*train\.parquet"):
        load(tmp_path)
    with pytest.raises(ProbeError, match=r"several splits[\s\S]*test, train[\s\S]*--probe"):
        load(FILES / "splits")


def test_a_cache_of_datasets_with_several_splits_names_them(tmp_path: Path, load: Load) -> None:
    cache = SAME["datasets: its cache"][1](sequences(), tmp_path / "cache")
    shutil.copy(cache / "json-train.arrow", cache / "cache-0123456789abcdef.arrow")  # of map()
    assert len(load(cache).sequences) == len(sequences())
    shutil.copy(cache / "json-train.arrow", cache / "json-validation.arrow")
    with pytest.raises(ProbeError, match=r"several splits[\s\S]*json-train, json-validation"):
        load(cache)
    for place in range(2):
        shutil.copy(cache / "json-train.arrow", cache / f"json-train-0000{place}-of-00002.arrow")
    (cache / "json-validation.arrow").unlink()
    (cache / "json-train.arrow").unlink()
    assert len(load(cache).sequences) == 2 * len(sequences())
