"""`hf://` names against a small server that speaks the Hub's endpoints, through huggingface_hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli import analyze, check, compare, inspect, routing
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.hub import fetch, open_path, parse_hub
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.environment import hub_home
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    PathError,
    UsageError,
)
from moegeo_cli.records import RunRecord
from tests.checkpoints.hub_server import Hub, commit_of, serve
from tests.command import call
from tests.tiny_models import save_tiny

STEPS = (100, 200, 300)
OPTIONS: dict[str, Any] = {"baseline": "none", "max_tokens": 200}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on disk, and the same as revisions."""
    top = tmp_path_factory.mktemp("models")
    for step in STEPS:
        save_tiny("qwen3_moe", top / f"step{step}-tokens{step // 100}B", seed=step)
    return top


@pytest.fixture(scope="module")
def probe(models: Path) -> Path:
    path = models / "probe.jsonl"
    rows = [{"input_ids": [(7 * n + k) % 64 for n in range(25)]} for k in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The other tests run with the Hub's client offline; these ask 127.0.0.1 alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    yield
    close_session()


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    revisions = {p.name: p for p in models.iterdir() if p.is_dir()}
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "pytorch_model.bin").write_bytes(b"x")
    with serve({**revisions, "main": models / "step300-tokens3B", "old": bare}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MOEGEO_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def whole(folder: Path) -> list[str]:
    """The revisions whose weights are on disk."""
    sizes = {p.parent.name: p.stat().st_size for p in folder.glob("*/*/model.safetensors")}
    return sorted(name for name, size in sizes.items() if size > 20_000)


def numbers(record: RunRecord) -> list[Any]:
    return [
        (c.step, c.progress["tokens"], c.loss.value, {n: m.value for n, m in c.metrics.items()})
        for c in record.checkpoints
    ]


def test_a_run_of_revisions_is_measured_and_one_is_kept(
    hub: Hub, models: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "moegeo_cli.measuring.revisions.fetch",
        lambda folders: (fetch(folders), seen.append(len(whole(hub_home())))),
    )
    found = analyze("hf://lab/moe@step*", probe=probe, **OPTIONS)
    here = analyze(models, probe=probe, cache=False, **OPTIONS)
    assert isinstance(found, RunRecord)
    assert isinstance(here, RunRecord)
    assert numbers(found) == numbers(here)
    assert [c.step for c in found.checkpoints] == [100, 200, 300]
    assert found.run["name"] == "lab/moe@step*"
    assert found.verdict is not None
    assert here.verdict is not None
    assert [f.name for f in found.verdict.findings] == [f.name for f in here.verdict.findings]
    assert seen == [1, 1, 1]
    assert whole(hub_home()) == ["step300-tokens3B"]
    sent = hub.sent
    again = analyze("hf://lab/moe@step*", probe=probe, **OPTIONS)
    assert isinstance(again, RunRecord)
    assert numbers(again) == numbers(here)
    assert again.verdict == found.verdict
    assert hub.sent == sent  # all of it was kept
    assert seen == [1, 1, 1]


def test_the_command_measures_three_revisions_and_keeps_one(
    hub: Hub, models: Path, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whenever a file of weights is sent, no other is whole on the disk."""
    held: list[int] = []
    hub.before_weights = lambda: held.append(len(whole(hub_home())))
    largest = max(p.stat().st_size for p in models.glob("*/model.safetensors"))
    command = ["analyze", "hf://lab/moe@step*", "--probe", probe, "--baseline", "none"]
    found = call(capsys, *command, "--format", "json")
    assert found.code == 0, found.err
    assert [c["step"] for c in found.document["checkpoints"]] == [100, 200, 300]
    assert held == [0, 0, 0]
    assert whole(hub_home()) == ["step300-tokens3B"]
    files = [p for p in hub_home().rglob("*") if p.is_file() and ".moegeo" not in p.parts]
    weights = sum(p.stat().st_size for p in files if p.suffix == ".safetensors")
    assert weights < largest + 2 * 20_000  # two headers more


@pytest.mark.parametrize(
    ("pattern", "steps", "left_out"),
    [
        ("step*00-*", [100, 200, 300], set()),
        ("step[12]*", [100, 200], set()),
        ("step?00-tokens*", [100, 200, 300], set()),
        ("step*", [100, 200, 300], {"step300-tokens3B"}),
        ("*", [100, 200, 300], {"main", "old", "step300-tokens3B", "v1", "v2"}),
    ],
)
def test_patterns_take_branches_and_tags(
    pattern: str, steps: list[int], left_out: set[str], hub: Hub
) -> None:
    """A tag of the same commit is a copy; a name without a step is left out."""
    hub.tags = {"v1": "main", "v2": "main", "step300": "step300-tokens3B"}
    run = open_path(f"hf://lab/moe@{pattern}")
    assert [c.step for c in run.checkpoints] == steps
    assert {s.path for s in run.skipped} == left_out
    with pytest.raises(NoCheckpointError, match="2 checkpoints without a step") as caught:
        open_path("hf://lab/moe@v*")
    assert "hf://lab/moe@'PATTERN'" in str(caught.value.hint)


def test_stages_of_a_training_are_listed(hub: Hub, models: Path) -> None:
    first, second = (models / f"step{n}00-tokens{n}B" for n in (1, 2))
    hub.revisions = {"stage1-step100": first, "stage1-step200": second, "stage2-step100": second}
    with pytest.raises(NoCheckpointError, match="hf://lab/moe@stage") as caught:
        open_path("hf://lab/moe@stage*")
    assert "stage1 (2 checkpoints, stage1-step100 to stage1-step200)" in str(caught.value.found)
    assert "a pattern of one stage" in str(caught.value.hint)
    run = open_path("hf://lab/moe@stage1-*")
    assert [c.step for c in run.checkpoints] == [100, 200]


def test_a_commit_is_a_revision(hub: Hub) -> None:
    commit = commit_of("step200-tokens2B")
    assert open_path(f"hf://lab/moe@{commit}").is_single


@pytest.mark.parametrize("first", [100_000, 64])
def test_inspect_reads_headers_alone(
    first: int, hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moegeo_cli.checkpoints.hub_files.FIRST_BYTES", first)
    found = inspect("hf://lab/moe@step200-tokens2B")
    here = inspect(models / "step200-tokens2B")
    assert found.routers == here.routers
    assert found.parameters == here.parameters
    assert found.bytes > 20_000
    weights = [r for _, path, r in hub.asked if path.endswith(".safetensors")]
    assert weights
    assert all(r is not None for r in weights)
    assert whole(hub_home()) == []


def test_a_header_alone_is_no_weights(hub: Hub) -> None:
    run = open_path("hf://lab/moe")
    index = open_weights(run.newest.path)
    with pytest.raises(
        IncompleteCheckpointError, match=r"model\.safetensors is truncated or damaged"
    ):
        index.read_bytes(index.names()[0])
    fetch([run.newest.path])
    assert len(open_weights(run.newest.path).read_bytes(index.names()[0])) > 0


def test_the_other_commands(hub: Hub, models: Path, probe: Path) -> None:
    name, other = "hf://lab/moe@step100-tokens1B", "hf://lab/moe@step300-tokens3B"
    here, there = models / "step100-tokens1B", models / "step300-tokens3B"
    record, known = check("hf://lab/moe@step*"), check(models, cache=False)
    assert [c.step for c in record.checkpoints] == [c.step for c in known.checkpoints]
    assert record.verdict is not None
    assert known.verdict is not None
    assert [f.name for f in record.verdict.findings] == [f.name for f in known.verdict.findings]
    lens = routing(name, other, probe=probe, max_tokens=200, cache=False)
    local = routing(here, there, probe=probe, max_tokens=200, cache=False)
    assert lens.layers == local.layers
    assert compare(name, name, probe=probe, **OPTIONS).pairs
    with pytest.raises(UsageError, match="one revision"):
        routing("hf://lab/moe@step*", probe=probe)


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("hf://lab/moe@nowhere", PathError, "no revision nowhere"),
        ("hf://lab/absent", PathError, "no model of that name"),
        ("hf://lab/moe@ckpt*", NoCheckpointError, "no revision of lab/moe fits"),
        ("hf://lab/moe@old", MoegeoError, "no safetensors"),
        ("hf://lab", PathError, "names no model"),
        ("lab/moe", PathError, "hf://lab/moe"),
    ],
)
def test_what_cannot_be_opened_says_why(
    name: str, kind: type[MoegeoError], word: str, hub: Hub
) -> None:
    with pytest.raises(kind, match=word) as caught:
        open_path(name)
    assert caught.value.exit_code == 2


def test_no_server_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOEGEO_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PathError, match="hf://lab/moe cannot be read"):
        open_path("hf://lab/moe@main")


def test_names() -> None:
    assert str(parse_hub(Path("hf://a/b@step*"))) == "hf://a/b@step*"
    assert parse_hub("runs/a") is None
    assert parse_hub("hf.co/a/b") is None


def test_a_cache_of_the_hub_opens_as_it_is(models: Path, tmp_path: Path) -> None:
    """Snapshots are links into blobs."""
    cache = tmp_path / "models--lab--moe"
    snapshot, blobs = cache / "snapshots" / ("0a" * 20), cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (models / "step100-tokens1B").iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-{file.name}")
    run = open_run(snapshot)
    assert run.is_single
    assert open_weights(run.newest.path).names()
    with pytest.raises(NoCheckpointError, match="Hub's cache") as caught:
        open_run(cache)
    assert str(snapshot) in str(caught.value.hint)
