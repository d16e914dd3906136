"""`moegeo check` as a user runs it: formats, exit codes, the store, bad input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest

from moegeo_cli.records.check import CheckRecord
from moegeo_cli.reports import json_report
from tests.command import Outcome, call
from tests.commands.check.planting import is_expert, is_router, load_file, save_file, save_run
from tests.commands.check.test_findings import holding
from tests.tiny_models import save_tiny

Run = Callable[..., Outcome]


@pytest.fixture
def moegeo(capsys: pytest.CaptureFixture[str]) -> Run:
    return partial(call, capsys)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keep = holding(lambda n: is_router("qwen3_moe", n), 0)
    return save_run(tmp_path_factory.mktemp("frozen"), "qwen3_moe", change=keep)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keep = holding(is_expert, 0, since=100)
    return save_run(tmp_path_factory.mktemp("lost"), "mixtral", change=keep)


def test_json_holds_to_its_schema_and_reads_back(moegeo: Run, lost: Path) -> None:
    found = moegeo("check", lost, "--format", "json")
    assert found.code == 0
    jsonschema.validate(found.document, json_report.schema("moegeo.check", strict=True))
    assert next(iter(found.document)) == "format"
    assert found.document["format"] == {"name": "moegeo.check", "version": 1}
    assert found.document["verdict"]["status"] == "failing"
    assert found.document["verdict"]["performance"] == "undetermined"
    record = json_report.read(found.out, CheckRecord)
    assert json_report.render(record) == found.out
    [advice] = [i for i in record.interventions if "experts-reset" in i.findings]
    assert advice.id == "reload-weights"


@pytest.mark.parametrize(
    ("fail_on", "frozen_code", "lost_code"), [("never", 0, 0), ("watch", 1, 1), ("failing", 0, 1)]
)
def test_the_gate(
    moegeo: Run, frozen: Path, lost: Path, fail_on: str, frozen_code: int, lost_code: int
) -> None:
    for run, code, status in ((frozen, frozen_code, "watch"), (lost, lost_code, "failing")):
        found = moegeo("check", run, "--fail-on", fail_on, "-f", "csv")
        assert found.code == code
        assert found.err.splitlines()[-1] == f"verdict: {status}, by the files alone"
        assert found.out.startswith("step,checkpoint,layer"), "the report is written all the same"


@pytest.mark.parametrize("form", ["rich", "markdown", "csv", "junit", "github"])
def test_every_format_says_what_was_found(moegeo: Run, lost: Path, form: str) -> None:
    text = moegeo("check", lost, "--format", form, "--full").out
    if form == "csv":
        assert text.startswith("step,checkpoint,layer,router,metric,value")
        assert "experts_moved" in text
        return
    assert "experts-reset" in text
    assert "to step 0" in " ".join(text.split())
    if form == "junit":
        [case] = ET.fromstring(text).iterfind(".//testcase/failure/..")
        assert case.get("name") == "MG803 experts-reset"
    if form == "github":
        assert text.startswith("::error title=moegeo verdict::")


def test_a_second_run_reads_nothing_and_a_new_checkpoint_alone(
    moegeo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moegeo_cli.commands.check import run as module

    run = save_run(tmp_path / "run", "qwen3_moe", (0, 100, 200))
    (run / "checkpoint-200").rename(tmp_path / "later")
    read: list[str] = []
    real = module.sum_checkpoint

    def hear(checkpoint, **options):  # type: ignore[no-untyped-def]
        read.append(checkpoint.relative)
        return real(checkpoint, **options)

    monkeypatch.setattr(module, "sum_checkpoint", hear)
    first = moegeo("check", run, "-f", "json")
    assert read == ["checkpoint-0", "checkpoint-100"]
    again = moegeo("check", run, "-f", "json")
    assert len(read) == 2
    assert again.out == first.out
    assert again.err.strip() == "verdict: healthy, by the files alone"
    (tmp_path / "later").rename(run / "checkpoint-200")
    third = moegeo("check", run, "-f", "json")
    assert read[2:] == ["checkpoint-200"]
    assert third.out == moegeo("check", run, "-f", "json", "--no-cache").out
    assert len(read) == 6
    full = moegeo("check", run, "-f", "json", "--verify-fingerprint", "full").document
    assert full["checkpoints"][0]["metrics"] == third.document["checkpoints"][0]["metrics"]


def test_a_file_that_changed_in_place_is_read_again(moegeo: Run, tmp_path: Path) -> None:
    path = save_tiny("qwen3_moe", tmp_path / "m")
    assert moegeo("check", path, "--fail-on", "failing").code == 0
    state = load_file(path / "model.safetensors")
    state["model.layers.1.mlp.experts.0.down_proj.weight"][0, 0] = float("nan")
    save_file(state, path / "model.safetensors", {"format": "pt"})
    found = moegeo("check", path, "--fail-on", "failing", "--full")
    assert found.code == 1
    assert "experts-damaged" in found.out


def test_steps_and_latest_choose_checkpoints(moegeo: Run, lost: Path) -> None:
    steps = moegeo("check", lost, "--steps", "0,200", "-f", "json").document
    assert [c["step"] for c in steps["checkpoints"]] == [0, 200]
    names = {f["name"] for f in steps["verdict"]["findings"]}
    assert names == {"experts-frozen"}, "without step 100 nothing had moved"
    latest = moegeo("check", lost, "--latest", "-f", "json").document
    assert [c["step"] for c in latest["checkpoints"]] == [200]
    assert latest["verdict"]["status"] == "healthy"


def test_what_cannot_be_checked_is_an_error(moegeo: Run, tmp_path: Path, frozen: Path) -> None:
    nothing = moegeo("check", tmp_path / "nothing")
    assert (nothing.code, "hint" in nothing.err) == (2, True)
    dense = tmp_path / "dense"
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=2)
    ).save_pretrained(dense)  # fmt: skip
    refused = moegeo("check", dense)
    assert (refused.code, refused.out) == (2, "")
    assert "llama is a dense model: its config asks for no routed experts" in refused.err
    unknown = moegeo("check", frozen, "--steps", "7")
    assert (unknown.code, unknown.out) == (2, "")
    assert "no checkpoint has one of these steps\n  found: steps 0, 100, 200" in unknown.err


def test_a_plain_checkpoint_is_checked_without_torch(frozen: Path) -> None:
    code = (
        "import sys; from moegeo_cli import check;"
        f"r = check({str(frozen)!r}, cache=False);"
        "assert r.verdict.status == 'watch'; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
