"""What can be known before hours of work is checked before them; what is given in one form of
several means the same in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moegeo_cli import analyze, compare
from moegeo_cli.commands.compare.pairing import choose_axis
from moegeo_cli.errors import ComparisonError, UsageError
from tests.command import Outcome
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import save_tiny


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint may be measured."""

    def meet(*arguments: object, **named: object) -> None:
        raise AssertionError("measured before the options were checked")

    for name in ("analyze.revisions", "compare.api"):
        monkeypatch.setattr(f"moegeo_cli.commands.{name}.measure_folder", meet)


@pytest.mark.usefixtures("idle")
def test_names_are_checked_first(tiny: Callable[..., Path], probe: Path) -> None:
    with pytest.raises(UsageError, match="no framework"):
        analyze(tiny("mixtral"), probe=probe, framework="nonsense")
    with pytest.raises(UsageError, match="--by"):
        compare(tiny("mixtral"), tiny("mixtral"), probe=probe, by="epochs")
    with pytest.raises(UsageError, match="thresholds"):
        analyze(tiny("mixtral"), probe=probe, thresholds=3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("idle")
def test_progress_that_is_not_recorded_is_said_first(probe: Path, tmp_path: Path) -> None:
    run = save_tiny("mixtral", tmp_path / "run" / "checkpoint-1").parent
    with pytest.raises(ComparisonError, match="cannot match by tokens"):
        compare(run, run, probe=probe, by="tokens")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be read."""

    def meet(*arguments: object, **named: object) -> None:
        raise AssertionError("weights were read")

    for name in ("weights.read_tensor", "weights.read_raw", "tensors.read_stored"):
        monkeypatch.setattr(f"moegeo_cli.checkpoints.{name}", meet)
    monkeypatch.setattr("safetensors.safe_open", meet)


@pytest.mark.usefixtures("unread")
def test_a_model_that_the_machine_cannot_hold_is_refused_before_its_files_are_checked(
    tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("fitting", "sources"):
        monkeypatch.setattr(f"moegeo_cli.models.{name}.free_bytes", lambda device: 0)
    found = moegeo("analyze", tiny("mixtral"), "--probe", probe)
    assert found.code == 2
    assert "the model does not fit this machine: it needs" in found.err


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("command", ["analyze", "compare", "experts", "routing", "invariance"])
def test_too_little_memory_is_refused_before_weights_are_read(
    command: str, tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    paths = [tiny("mixtral")] * (2 if command == "compare" else 1)
    found = moegeo(command, *paths, "--probe", probe, "--memory", "64MB", "-f", "json")
    assert found.code == 2
    assert found.out == ""
    assert "MG-E050" in found.err
    assert "--memory is too low for this model: it needs" in found.err
    assert "64 MiB; the largest terms: process" in found.err
    assert "raise --memory to that" in found.err


def test_runs_without_progress_are_compared_where_one_is_a_single_checkpoint() -> None:
    several: list[tuple[str, dict[str, float | None]]] = [("one", {}), ("two", {})]
    assert choose_axis([several, [("base", {})]], None) == "newest"
    with pytest.raises(ComparisonError, match="no progress in common"):
        choose_axis([several, several], None)


def test_one_large_probe_for_runs_of_two_sizes(
    tmp_path: Path, moegeo: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run by itself would take another part of the probe: more experts need more tokens."""
    from moegeo_cli.measuring import probe as probes

    monkeypatch.setattr(probes, "MINIMUM_TOKENS", 64)
    monkeypatch.setattr(probes, "tokens_for_power", lambda experts, *rest: 50 * experts)
    sizes = {"a": 6, "b": 24}
    for name, experts in sizes.items():
        save_tiny("mixtral", tmp_path / name / "checkpoint-1", num_local_experts=experts)
    probe = write_probe(tmp_path / "big.jsonl", random_ids([20] * 80))
    found = moegeo("compare", tmp_path / "a", tmp_path / "b", "--probe", probe, "-f", "json",
                   "--no-cache")  # fmt: skip
    assert found.code == 0, found.err
    needs = []
    for name in sizes:
        run = moegeo("analyze", tmp_path / name, "--probe", probe, "-f", "json", "--no-cache",
                     "--baseline", "none")  # fmt: skip
        needs.append(run.document["probe"]["tokens"])
    assert needs[0] < needs[1]
    assert found.document["probe"]["tokens"] == needs[1]


def test_a_file_of_thresholds_by_its_path(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path
) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[thresholds]\nlogit-explosion = 12.5\n")
    for given in (str(file), file, {"logit-explosion": 12.5}):
        run = analyze(tiny("mixtral"), probe=probe, thresholds=given, cache=False)
        assert run.settings["thresholds"]["logit-explosion"]["value"] == 12.5
    with pytest.raises(UsageError, match="is not a file of thresholds"):
        analyze(tiny("mixtral"), probe=probe, thresholds=str(tmp_path / "absent.toml"))
