"""What scripts rely on: streams, bytes, the schema, exit codes, the store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from moegeo_cli.cli.app import run
from moegeo_cli.reports import schema
from tests.end_to_end.conftest import LENGTHS, Outcome, random_ids, write_probe
from tests.processes import Started

jsonschema = pytest.importorskip("jsonschema")


def grow(folder: Path, tiny: Callable[..., Path]) -> Path:
    """Three checkpoints of one run."""
    for step, seed in ((0, 0), (10, 1), (20, 2)):
        shutil.copytree(tiny("qwen3_moe", seed), folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def grown(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of which nothing is measured."""
    return grow(tmp_path / "grown", tiny)


@dataclass(frozen=True)
class First:
    """A run that was analyzed once, and the JSON of that."""

    folder: Path
    text: str

    def out(self, place: Path) -> str:
        """The JSON of the same run at another place."""
        return self.text.replace(str(self.folder), str(place))


@pytest.fixture(scope="module")
def first(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> First:
    folder = grow(tmp_path_factory.mktemp("first") / "grown", tiny)
    probe = write_probe(folder.parent / "probe.jsonl", random_ids(LENGTHS))
    out = folder.parent / "out.json"
    arguments = ("analyze", folder, "--probe", probe, "--format", "json", "--output", out)
    assert run(list(map(str, arguments))) == 0
    return First(folder, out.read_text())


@pytest.fixture
def measured(first: First, tmp_path: Path) -> Path:
    """The same run elsewhere, its measurements beside it."""
    return Path(shutil.copytree(first.folder, tmp_path / "elsewhere" / first.folder.name))


def test_json_fits_its_schema_and_the_same_input_gives_the_same_bytes(
    grown: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    command = ("analyze", grown, "--probe", probe, "--format", "json")
    first, second = moegeo(*command), moegeo(*command)
    fresh = moegeo(*command, "--no-cache")
    assert first.code == 0, first.err
    jsonschema.validate(first.document, schema("moegeo.run"))
    assert next(iter(first.document)) == "format"
    assert first.out == second.out == fresh.out
    assert [c["step"] for c in first.document["checkpoints"]] == [0, 10, 20]
    assert len(first.document["dynamics"]) == 2
    scores = first.document["checkpoints"][0]["metrics"]["fhs"]
    assert scores["value"] == pytest.approx(1.0)


def test_one_new_checkpoint_measures_one(
    grown: Path, probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome], first: First
) -> None:
    late = tmp_path / "late"
    shutil.move(grown / "checkpoint-20", late)
    moegeo("analyze", grown, "--probe", probe, "--format", "json")
    shutil.move(late, grown / "checkpoint-20")
    grew = moegeo("analyze", grown, "--probe", probe, "--format", "json")
    assert grew.err.count("already measured") == 2
    assert grew.out == first.out(grown)


def test_latest_measures_the_newest_and_the_baseline(
    grown: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    latest = moegeo("analyze", grown, "--probe", probe, "--format", "json", "--latest")
    assert "[2/2]" in latest.err
    found = latest.document
    assert [c["step"] for c in found["checkpoints"]] == [20]
    assert found["baseline"] == {
        "kind": "checkpoint", "step": 0, "path": "checkpoint-0", "baseline_draws": 1,
        "reason": None,
    }  # fmt: skip
    assert found["checkpoints"][0]["metrics"]["fhs"]["value"] > 0


def test_an_unchanged_rerun_loads_no_torch(measured: Path, probe: Path, first: First) -> None:
    output = measured / "out.json"
    code = (
        "import sys; from moegeo_cli.cli.app import run\n"
        f"code = run(['analyze', {str(measured)!r}, '--probe', {str(probe)!r}, '--format', 'json',"
        f" '--output', {str(output)!r}])\n"
        "print('torch' in sys.modules, code)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False 0"
    assert output.read_text() == first.out(measured)


def test_a_deleted_measurement_is_measured_again(
    measured: Path, probe: Path, moegeo: Callable[..., Outcome], first: First
) -> None:
    files = sorted((measured / ".moegeo").glob("*/measurements.safetensors"))
    assert len(files) == 3
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    again = moegeo("analyze", measured, "--probe", probe, "--format", "json")
    assert again.out == first.out(measured)
    assert again.err.count("already measured") == 1


def test_compare_pairs_by_step_and_a_run_equals_itself(
    measured: Path, probe: Path, moegeo: Callable[..., Outcome], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(measured, other)
    found = moegeo("compare", measured, other, "--probe", probe, "--format", "json")
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, schema("moegeo.compare"))
    assert document["matched_by"] == "step"
    assert [p["step_a"] for p in document["pairs"]] == [0, 10, 20]
    for pair in document["pairs"]:
        for name, row in pair["differences"].items():
            if row["difference"]["value"] is not None:
                assert row["difference"]["value"] == 0.0, name
                assert row["difference"]["ci_low"] in (0.0, None), name
    assert document["healthier"] is None


@pytest.mark.parametrize("name", ["rich", "markdown", "csv", "junit", "github"])
def test_every_format_leaves_stdout_to_the_payload(
    name: str, measured: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("analyze", measured, "--probe", probe, "--format", name)
    assert found.code == 0, found.err
    assert found.out.strip()
    assert "checkpoint-10" in found.err


def test_fresh_initialisations_serve_as_baseline(
    tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("analyze", tiny("mixtral", 5), "--probe", probe, "--baseline", "init",
                   "--no-cache", "--format", "json")  # fmt: skip
    assert found.code == 0, found.err
    assert found.document["baseline"]["baseline_draws"] >= 8
    metric = found.document["checkpoints"][0]["metrics"]["fhs_trace"]
    assert metric["ci_low"] < metric["value"] < metric["ci_high"]


def test_help_answers_without_torch() -> None:
    code = (
        "import sys\nfrom moegeo_cli.cli.app import run\nrun(['--help'])\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr.strip() == "False False"
    for command in ("analyze", "compare", "inspect", "probe", "invariance"):
        assert command in told.stdout


def test_a_probe_without_a_loss_token_has_no_empirical_fisher(
    tiny: Callable[..., Path], tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    probe = write_probe(tmp_path / "ones.jsonl", random_ids([1] * 20))
    found = moegeo(
        "analyze", tiny("mixtral", 0), "--probe", probe, "--no-cache", "--format", "json"
    )
    assert found.code == 0, found.err
    [checkpoint] = found.document["checkpoints"]
    assert checkpoint["loss"]["value"] is None
    assert checkpoint["metrics"]["fsi"]["value"] is not None
    for layer in checkpoint["layers"]:
        assert layer["fisher_trace"] is None
        assert layer["metrics"]["heterogeneity"]["value"] is None
        assert "no loss token" in layer["metrics"]["heterogeneity"]["reason"]
        assert layer["fisher"]["categorical"]["token"]["heterogeneity"]["value"] > 0


def test_the_batches_are_recorded(
    tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    for options, expected in (((), (None, 2048)), (("--batch-size", 4), (4, None))):
        arguments = ("--probe", probe, "--no-cache", "--format", "json", *options)
        [checkpoint] = moegeo("analyze", tiny("mixtral", 0), *arguments).document["checkpoints"]
        replay = checkpoint["replay"]
        assert (replay["batch_size"], replay["batch_tokens"]) == expected


def test_an_interrupt_says_so_and_exits_130(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path
) -> None:
    started = Started(tmp_path, "analyze", tiny("mixtral", 0), "--probe", probe, "--no-cache")
    started.wait_for("\n")  # the first line on the work to come
    assert started.process.pid is not None
    os.kill(started.process.pid, signal.SIGINT)
    code, out, err = started.end()
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""


def test_steps_need_not_hold_the_newest(
    measured: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("analyze", measured, "--probe", probe, "--steps", "0", "--format", "json")
    assert found.code == 0, found.err
    assert [c["step"] for c in found.document["checkpoints"]] == [0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_of_any_width(
    dtype: str, tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    arguments = ("--probe", probe, "--dtype", dtype, "--no-cache", "--format", "json")
    found = moegeo("analyze", tiny("mixtral", 0), *arguments)
    assert found.code == 0, found.err
    assert found.document["checkpoints"][0]["replay"]["dtype"] == dtype


def test_a_loss_that_is_not_finite_fails(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny("mixtral", 0), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    found = moegeo("analyze", broken, "--probe", probe, "--no-cache", "--fail-on", "failing")
    assert found.code == 1
    assert "loss on the probe is not finite" in " ".join(found.out.split())


def test_two_sequences_fail_no_run(
    tiny: Callable[..., Path], tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    probe = write_probe(tmp_path / "two.jsonl", random_ids([8]) * 2)
    found = moegeo("analyze", tiny("mixtral", 0), "--probe", probe, "--no-cache",
                   "--fail-on", "failing")  # fmt: skip
    assert found.code in (0, 3), found.out
    assert "failing" not in found.out


def test_a_closed_pipe_is_not_the_gates_word(measured: Path, probe: Path) -> None:
    command = [sys.executable, "-m", "moegeo_cli", "analyze", str(measured), "--probe", str(probe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141


def test_an_output_replaces_neither_a_pipe_nor_a_checkpoint(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    path = tiny("mixtral", 0)
    before = (path / "config.json").read_bytes()
    arguments = ("analyze", path, "--probe", probe, "--no-cache", "--format", "json", "--output")
    refused = moegeo(*arguments, path / "config.json")
    assert refused.code == 2
    assert "config.json is a file of a checkpoint and is not overwritten" in refused.err
    assert (path / "config.json").read_bytes() == before
    assert moegeo(*arguments, "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    assert moegeo(*arguments, link).code == 0
    assert link.is_symlink()
    assert (tmp_path / "target.json").is_file()


def test_experts_computed_one_by_one_are_noted_at_every_checkpoint(
    grown: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    arguments = ("--probe", probe, "--dtype", "bfloat16", "--no-cache", "--format", "json")
    checkpoints = moegeo("analyze", grown, *arguments).document["checkpoints"]
    assert len(checkpoints) > 1
    assert all("one by one" in " ".join(c["replay"]["notes"]) for c in checkpoints)
