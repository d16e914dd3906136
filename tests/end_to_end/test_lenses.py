"""`moegeo experts` kept with a run, and picked up by `moegeo analyze`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.measuring import provenance
from moegeo_cli.measuring import run as measuring
from moegeo_cli.reports import json_report
from tests.end_to_end.conftest import Outcome, random_ids, write_probe
from tests.end_to_end.test_experts import COPY, LAYER, LENGTHS, TWIN, plant

NAME = "redundant-experts"
NOT_THERE = ("skipped", "no result of `moegeo experts` on this checkpoint is at hand")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose one checkpoint has two experts alike, never to be written to, and a probe."""
    folder = tmp_path_factory.mktemp("planted")
    probe = write_probe(folder / "p.jsonl", random_ids(LENGTHS))
    plant("qwen3_moe", folder / "run" / "checkpoint-10", lambda down: 3.0 * down)
    return folder / "run", probe


@pytest.fixture
def run(planted: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted[0], tmp_path / "run"))


@pytest.fixture
def probe(planted: tuple[Path, Path]) -> Path:
    return planted[1]


def check_of(document: dict[str, Any]) -> tuple[str, str | None]:
    [check] = [c for c in document["verdict"]["checks"] if c["name"] == NAME]
    return check["outcome"], check["reason"]


def test_analyze_lists_what_experts_found(
    run: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    analyze = ("analyze", run, "--probe", probe, "--format", "json")
    before = moegeo(*analyze).document
    assert check_of(before) == NOT_THERE
    assert NAME not in {f["name"] for f in before["verdict"]["findings"]}
    own = moegeo("experts", run, "--probe", probe, "--format", "json")
    assert own.code == 0, own.err
    jsonschema.validate(own.document, json_report.schema("moegeo.experts", strict=True))
    [finding] = own.document["findings"]
    assert f"layer {LAYER}: {TWIN} + {COPY}" in finding["message"]
    assert own.document["fingerprint"] == before["checkpoints"][-1]["fingerprint"]
    first, second = moegeo(*analyze), moegeo(*analyze)
    assert first.out == second.out
    document = first.document
    jsonschema.validate(document, json_report.schema("moegeo.run", strict=True))
    assert check_of(document) == ("found", None)
    assert [f for f in document["verdict"]["findings"] if f["name"] == NAME] == [finding]
    # The finding is info: it waits for a rate measured on trainings that went well. What to do
    # about it is in the command's own report.
    assert finding["severity"] == "info"
    assert [i["id"] for i in own.document["interventions"]] != []
    assert not [i for i in document["interventions"] if NAME in i["findings"]]
    assert any("moegeo experts" in note for note in document["run"]["notes"])
    assert document["checkpoints"][-1]["metrics"] == before["checkpoints"][-1]["metrics"]
    shown = moegeo("analyze", run, "--probe", probe, "--full")
    assert "MG601 redundant-experts" in shown.out


@pytest.mark.slow
def test_a_run_that_is_picked_up_loads_no_torch(run: Path, probe: Path) -> None:
    code = (
        "import sys; from moegeo_cli.cli.app import run\n"
        f"code = run(['analyze', {str(run)!r}, '--probe', {str(probe)!r}, '--format', 'json',"
        f" '--output', {str(run / 'out.json')!r}])\n"
        "print('torch' in sys.modules, code)"
    )
    call = [sys.executable, "-m", "moegeo_cli", "experts", str(run), "--probe", str(probe)]
    subprocess.run(call, capture_output=True, check=True)
    told = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [t.stdout.strip() for t in told] == ["True 0", "False 0"]
    assert check_of(json.loads((run / "out.json").read_text())) == ("found", None)


def test_what_is_damaged_or_of_other_weights_is_no_result(
    run: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    analyze = ("analyze", run, "--probe", probe, "--format", "json")
    moegeo("experts", run, "--probe", probe)
    [kept] = (run / ".moegeo").glob("experts-*.json")
    assert check_of(moegeo(*analyze).document)[0] == "found"
    assert check_of(moegeo(*analyze, "--no-cache").document) == NOT_THERE
    whole = kept.read_text()
    for damage in (whole[:-40], whole.replace("nearest", "farthest", 1), "{}", ""):
        kept.write_text(damage)
        document = moegeo(*analyze).document
        assert check_of(document) == (
            "skipped", "the stored result of `moegeo experts` is damaged: run it again",
        )  # fmt: skip
        assert any("damaged" in note for note in document["run"]["notes"])
    kept.write_text(whole)
    plant("qwen3_moe", run / "checkpoint-10", lambda down: -down)
    assert check_of(moegeo(*analyze).document) == NOT_THERE


def test_a_narrower_measurement_does_not_take_the_place_of_a_wider_one(
    run: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    analyze = ("analyze", run, "--probe", probe, "--format", "json")
    moegeo("experts", run, "--probe", probe)
    moegeo("experts", run, "--probe", probe, "--layers", "1")
    assert len(list((run / ".moegeo").glob("experts-*.json"))) == 2
    document = moegeo(*analyze).document
    assert check_of(document)[0] == "found"
    [note] = [n for n in document["run"]["notes"] if "moegeo experts" in n]
    assert ": 2 of 2 routers" in note


def test_versions_are_those_that_measured(
    run: Path, probe: Path, moegeo: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze = ("analyze", run, "--probe", probe, "--format", "json")
    first = moegeo(*analyze).document
    plain = provenance.running_versions
    monkeypatch.setattr(provenance, "running_versions", lambda: {**plain(), "numpy": "9.9"})
    second = moegeo(*analyze).document
    assert second["versions"] == first["versions"]
    assert any("measured earlier with other versions: numpy" in n for n in second["run"]["notes"])


def test_other_versions_of_what_computes_measure_anew(
    run: Path, probe: Path, moegeo: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    moegeo("analyze", run, "--probe", probe, "--format", "json")
    kept = set((run / ".moegeo").glob("*/record.json"))
    plain = provenance.deciding_versions
    monkeypatch.setattr(measuring, "deciding_versions", lambda: {**plain(), "torch": "9.9"})
    moegeo("analyze", run, "--probe", probe, "--format", "json")
    assert len(set((run / ".moegeo").glob("*/record.json")) - kept) == len(kept)


def test_another_limit_needs_no_other_measurement(
    run: Path, probe: Path, moegeo: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    moegeo("experts", run, "--probe", probe)
    (run / "moegeo.toml").write_text("[thresholds]\nredundant-experts = 1.5\n")
    monkeypatch.chdir(run)
    document = moegeo("analyze", run, "--probe", probe, "--format", "json").document
    assert check_of(document) == ("passed", None)


def test_without_the_cache_nothing_is_kept(
    run: Path, probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    moegeo("experts", run, "--probe", probe, "--no-cache")
    assert not (run / ".moegeo").exists()
    moegeo("experts", run, "--probe", probe, "--cache-dir", tmp_path / "kept")
    assert not (run / ".moegeo").exists()
    found = moegeo("analyze", run, "--probe", probe, "--cache-dir", tmp_path / "kept",
                   "--format", "json")  # fmt: skip
    assert check_of(found.document)[0] == "found"


def test_files_of_before_still_load(run: Path, probe: Path, moegeo: Callable[..., Outcome]) -> None:
    document = moegeo("experts", run, "--probe", probe, "--format", "json").document
    for key in ("fingerprint", "findings", "interventions", "checks"):
        document.pop(key)
    for layer in document["layers"]:
        layer.pop("null_limit")
        for expert in layer["expert"]:
            expert.pop("nearest")
            expert.pop("nearest_alignment")
    record = json_report.read(json.dumps(document), ExpertsRecord)
    assert (record.fingerprint, record.findings) == ("", ())
    assert json_report.read(json_report.render(record), ExpertsRecord) == record
