"""`moegeo probe build` and `moegeo probe show` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.probes.conftest import save_tokenizer

Lines = Callable[..., Path]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def probe(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    from moegeo_cli.cli.app import run

    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run(["probe", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)

    return call


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Two texts with their domains."""
    for name in ("prose", "code"):
        text = "\n\n".join(f"{name} {i} " + "word " * 150 for i in range(8))
        (tmp_path / f"{name}.txt").write_text(text)
    return [f"{name}={tmp_path / name}.txt" for name in ("prose", "code")]


def test_build_writes_the_payload_alone(texts: list[str], tmp_path: Path, probe: Any) -> None:
    printed = probe("build", *texts)
    assert (printed.code, printed.err) == (0, "")
    output = tmp_path / "new" / "built.jsonl"
    written = probe("build", *texts, "--output", output)
    assert (written.code, written.out) == (0, "")
    assert "16 sequences" in written.err
    assert output.read_text() == printed.out
    assert probe("build", *texts, "-o", output, "--max-sequences", 4, "--seed", 3).code == 0
    assert len(output.read_text().splitlines()) == 5
    assert not list(output.parent.glob(".*"))


def test_domains_of_files(texts: list[str], tmp_path: Path, probe: Any) -> None:
    def domains(*arguments: object) -> set[str | None]:
        lines = probe("build", *arguments).out.splitlines()[1:]
        return {json.loads(line).get("domain") for line in lines}

    plain = tmp_path / "prose.txt"
    assert domains(*texts) == {"prose", "code"}
    assert domains(plain) == {None}
    assert domains(plain, texts[1], "--domain", "other") == {"other", "code"}
    odd = tmp_path / "a=b.txt"
    odd.write_text("a text")
    assert domains(odd) == {None}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("absent.txt",), "absent.txt"),
        (("prose=absent.txt",), "absent.txt"),
        (("TEXT", "--tokenizer", "nowhere"), "nowhere"),
        (("TEXT", "--domain", "\x1b[31m"), "domain"),
        (("TEXT", "--max-tokens", "3"), "at most 3"),
        (("TEXT", "--max-tokens", "0"), "max-tokens"),
        (("TEXT", "--output", "TEXT/x.jsonl"), "cannot be written"),
        ((), "Missing argument"),
    ],
)
def test_build_refuses(arguments: tuple[str, ...], word: str, tmp_path: Path, probe: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 50)
    before = sorted(tmp_path.iterdir())
    found = probe("build", *(a.replace("TEXT", str(text)) for a in arguments))
    assert (found.code, found.out) == (2, "")
    assert word in found.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_build_leaves_the_old_file(texts: list[str], tmp_path: Path, probe: Any) -> None:
    output = tmp_path / "built.jsonl"
    assert probe("build", *texts, "-o", output).code == 0
    before = output.read_bytes()
    (tmp_path / "code.txt").write_bytes(b"\xff")
    failed = probe("build", *texts, "-o", output)
    assert (failed.code, failed.out) == (2, "")
    assert "code.txt is not UTF-8 text" in failed.err
    assert output.read_bytes() == before


def test_ids_of_a_checkpoint_and_of_a_run(
    texts: list[str], tiny: Callable[..., Path], tmp_path: Path, probe: Any
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny("mixtral", 0), run / "checkpoint-5")
    config = json.loads((run / "checkpoint-5" / "config.json").read_text())
    refused = probe("build", *texts, "--tokenizer", run)
    assert refused.code == 2
    assert "tokenizer" in refused.err
    save_tokenizer(run / "checkpoint-5", size=300)
    outside = probe("build", *texts, "--tokenizer", run)
    assert outside.code == 2
    assert f"vocabulary has {config['vocab_size']}" in outside.err
    alone = save_tokenizer(tmp_path / "tokenizer", size=300)
    built = probe("build", *texts, "--tokenizer", alone)
    assert built.code == 0
    assert "input_ids" in built.out


def test_show_the_bundled_probe(probe: Any) -> None:
    found = probe("show")
    assert (found.code, found.err) == (0, "")
    for word in ("bundled", "256", "domains", "code 64", "sha256"):
        assert word in found.out
    document = json.loads(probe("show", "--format", "json").out)
    assert next(iter(document)) == "format"
    assert document["format"] == {"name": "moegeo.probe", "version": 1}
    assert document["bytes"] >= 65_536
    assert len(document["first"]) == 4


def test_show_counts_a_models_tokens(
    tiny: Callable[..., Path], lines: Lines, tmp_path: Path, probe: Any
) -> None:
    path = lines({"input_ids": [1, 2, 3], "domain": "a"}, {"input_ids": [4]})
    checkpoint = tiny("mixtral", 0)
    document = json.loads(probe("show", path, "--model", checkpoint, "-f", "json").out)
    assert document["tokens"] == 4
    assert document["loss_tokens"] == 2
    assert document["lengths"] == {"shortest": 1, "median": 1, "longest": 3}
    assert document["domain_tokens"] == {"a": 3}
    assert str(tmp_path) not in json.dumps(document)
    refused = probe("show", lines({"input_ids": [64]}, name="other.jsonl"), "--model", checkpoint)
    assert (refused.code, refused.out) == (2, "")
    output = tmp_path / "shown.json"
    assert probe("show", path, "-o", output).out == ""
    assert json.loads(output.read_text())["tokens"] == 4


def test_show_escapes_what_is_foreign(tmp_path: Path, probe: Any) -> None:
    path = tmp_path / "\x1b[31mred[bold].jsonl"
    text = "[bold]markup[/bold] \x1b[31m \u202e \x07 [link=x]"
    path.write_text(json.dumps({"text": text, "domain": "[red]d[/red]"}) + "\n")
    found = probe("show", path)
    assert found.code == 0
    assert "[bold]markup[/bold]" in found.out
    assert "[red]d[/red]" in found.out
    assert not {"\x1b", "\x07", "\u202e"} & set(found.out + found.err)
    assert probe("show", path, "-f", "json").out.isascii()
    bad = tmp_path / "\x1b[31mbad.jsonl"
    bad.write_text("{")
    assert "\x1b" not in probe("show", bad).err


def test_file_names_that_are_not_unicode(tmp_path: Path, probe: Any) -> None:
    path = Path(str(tmp_path / "name-\udcff.jsonl"))
    path.write_text('{"text": "word"}\n')
    assert probe("show", path).code == 0
    assert json.loads(probe("show", path, "-f", "json").out)["source"] == "name-\\udcff.jsonl"


@pytest.mark.parametrize("command", [("--help",), ("build", "--help"), ("show", "--help")])
def test_help_needs_no_torch(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from moegeo_cli.cli.app import run\n"
        f"assert run(['probe', *{command!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
