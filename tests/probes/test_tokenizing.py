"""The checkpoint's own tokenizer, bytes, or a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes import Probe
from moegeo_cli.probes.tokenizing import open_tokenizer, tokenizer_sha256
from tests.probes.conftest import CORPUS, save_tokenizer

Lines = Callable[..., Path]
Load = Callable[..., Probe]


def test_text_goes_through_the_checkpoints_tokenizer(bare: Path, lines: Lines, load: Load) -> None:
    from tokenizers import Tokenizer

    save_tokenizer(bare, size=300)
    fast = Tokenizer.from_file(str(bare / "tokenizer.json"))
    text = "the router of a run: é"
    probe = load(lines({"text": text}), vocab_size=300)
    assert probe.sequences[0].input_ids.tolist() == fast.encode(text).ids
    assert probe.tokens < len(text.encode())
    assert probe.tokenizer == tokenizer_sha256(bare)


def test_the_run_above_may_hold_the_tokenizer(bare: Path, lines: Lines, load: Load) -> None:
    save_tokenizer(bare.parent, size=300)
    assert load(lines({"text": CORPUS[0]}), vocab_size=300).tokenizer == tokenizer_sha256(bare)


def test_a_tokenizer_wins_over_bytes(bare: Path, lines: Lines, load: Load) -> None:
    save_tokenizer(bare, size=256)
    assert load(lines({"text": CORPUS[0]}), vocab_size=260).tokenizer != "bytes"


@pytest.mark.parametrize("size", [64, 255, 257, 32_000])
def test_without_a_tokenizer_only_256_ids_are_bytes(size: int, lines: Lines, load: Load) -> None:
    with pytest.raises(ProbeError, match="no tokenizer") as caught:
        load(lines({"text": "word"}), vocab_size=size)
    assert f"{size:,}" in str(caught.value)


def test_ids_beyond_the_models_vocabulary(bare: Path, lines: Lines, load: Load) -> None:
    save_tokenizer(bare, size=300)
    with pytest.raises(ProbeError, match="vocabulary has 3 ids"):
        load(lines({"text": CORPUS[0]}), vocab_size=3)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"model": 3}', b"[" * 100_000, b"\xff\xfe"]
)
def test_a_damaged_tokenizer(content: bytes, bare: Path, lines: Lines, load: Load) -> None:
    (bare / "tokenizer.json").write_bytes(content)
    with pytest.raises(ProbeError, match=r"tokenizer\.json cannot be opened"):
        load(lines({"text": "word"}))


def test_padding_truncation_and_layout_do_not_change_the_hash(bare: Path) -> None:
    save_tokenizer(bare)
    path = bare / "tokenizer.json"
    before, ids = tokenizer_sha256(bare), open_tokenizer(bare, 300).encode(CORPUS[0]).tolist()
    document: dict[str, Any] = json.loads(path.read_text())
    document["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    document["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=4))
    assert tokenizer_sha256(bare) == before
    assert open_tokenizer(bare, 300).encode(CORPUS[0]).tolist() == ids


def test_another_tokenizer_is_refused(tmp_path: Path, bare: Path, lines: Lines, load: Load) -> None:
    other = save_tokenizer(tmp_path / "other", [CORPUS[0] * 3], size=290)
    save_tokenizer(bare, size=300)
    header = {"moegeo.probe": 1, "tokenizer": tokenizer_sha256(other), "vocab_size": 300}
    path = lines(header, {"input_ids": [1, 2]})
    with pytest.raises(ProbeError, match="another tokenizer") as caught:
        load(path, vocab_size=300)
    assert "moegeo probe build" in str(caught.value)
    assert load(path, vocab_size=300, tokenizer_dir=other).tokens == 2


def test_slow_tokenizers_are_hashed_whole(bare: Path) -> None:
    (bare / "vocab.json").write_text("{}")
    (bare / "merges.txt").write_text("a b")
    before = tokenizer_sha256(bare)
    (bare / "merges.txt").write_text("a c")
    assert tokenizer_sha256(bare) != before


def test_nothing_of_a_checkpoint_is_executed(bare: Path, lines: Lines, load: Load) -> None:
    marker = bare / "executed"
    (bare / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass T: pass\n")
    (bare / "vocab.json").write_text("{}")
    (bare / "config.json").write_text('{"model_type": "evil"}')
    (bare / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    with pytest.raises(ProbeError, match="cannot be opened"):
        load(lines({"text": "word"}))
    assert not marker.exists()


def test_a_tokenizer_json_needs_no_torch(bare: Path, lines: Lines) -> None:
    save_tokenizer(bare, size=300)
    code = (
        "import sys; from pathlib import Path; from moegeo_cli.probes import load_probe\n"
        f"load_probe(Path({str(lines({'text': 'word'}))!r}), vocab_size=300,"
        f" tokenizer_dir=Path({str(bare)!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
