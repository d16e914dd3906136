"""Several ranks measure what one does, and end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli import analyze
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError
from moegeo_cli.probes import load_probe
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.replay.sharing import share_batches
from moegeo_cli.reports import render
from moegeo_cli.settings import Settings
from tests.architectures.zoo import save_tiny
from tests.command import call
from tests.end_to_end.conftest import random_ids, write_probe
from tests.processes import Started
from tests.replay.documents import assert_equal
from tests.sharding import save_state
from tests.tiny_models import build_tiny

ROOT = Path(__file__).parents[2]
TYPES = ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3")
SAMPLE = ROOT / "sample_checkpoints" / "unbalanced-mixtral"


def test_whole_batches_are_shared_out_evenly_and_none_is_lost() -> None:
    lengths = [3, 4, 9, 9, 10, 30, 2, 2, 17]
    batches = [[6, 7], [0, 1], [2, 3, 4], [8], [5]]
    shares = share_batches(batches, lengths, 2)
    assert sorted(b for share in shares for b in share) == sorted(batches)
    loads = [sum(lengths[s] for batch in share for s in batch) for share in shares]
    assert max(loads) - min(loads) <= 4


def test_fewer_batches_than_ranks_leave_the_last_ranks_idle() -> None:
    assert share_batches([[0, 1]], [5, 5], 3) == [[[0, 1]], [], []]


def place(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank in its environment."""
    known = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in known.items()}}


def start(rank: int, world: int, port: int, *arguments: object, folder: Path) -> subprocess.Popen:
    """One rank, as torchrun starts it, but with an exit code that we see."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **place(rank, world, port)},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_ranks(folders: list[Path], *arguments: object) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each rank."""
    port = free_port()
    started = [
        start(rank, len(folders), port, *arguments, folder=folder)
        for rank, folder in enumerate(folders)
    ]
    texts = [process.communicate(timeout=120) for process in started]
    return [(p.returncode, *text) for p, text in zip(started, texts, strict=True)]


def start_forks(folders: list[Path], *arguments: object) -> list[Started]:
    """The same command at every rank, without the seconds in which each would import."""
    port = free_port()
    return [
        Started(folder, *arguments, environment=place(rank, len(folders), port))
        for rank, folder in enumerate(folders)
    ]


def run_forks(folders: list[Path], *arguments: object) -> list[tuple[int | None, str, str]]:
    """Exit code, stdout and stderr of each."""
    return [fork.end() for fork in start_forks(folders, *arguments)]


@pytest.fixture(scope="module")
def cases(
    tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Analyses by two ranks, one after another in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    odd = write_probe(folder / "odd.jsonl", random_ids([5 + (7 * i) % 29 for i in range(17)]))
    single = write_probe(folder / "single.jsonl", random_ids([40]))
    wanted: dict[str, dict[str, Any]] = {
        name: {"path": str(tiny(name)), "probe": str(odd), "batch_size": 3} for name in TYPES
    }
    save_tiny("switch_transformers", folder / "switch")
    wanted["encoder-decoder"] = {**wanted["mixtral"], "path": str(folder / "switch")}
    model = build_tiny("mixtral")
    save_state(model.state_dict(), folder / "distributed")
    model.config.save_pretrained(folder / "config")
    wanted["--config"] = {
        **wanted["mixtral"], "path": str(folder / "distributed"), "config": str(folder / "config"),
    }  # fmt: skip
    wanted["one sequence"] = {"path": str(tiny("mixtral")), "probe": str(single)}
    wanted["sequence unit"] = {**wanted["mixtral"], "unit": "sequence", "layers": "1-2"}
    wanted["categorical, initialisations"] = {
        **wanted["qwen2_moe"], "fisher": "categorical", "baseline": "init",
    }  # fmt: skip
    found = {
        name: (keywords, folder / f"{number}.json")
        for number, (name, keywords) in enumerate(wanted.items())
    }
    (folder / "work.json").write_text(json.dumps([(k, str(p)) for k, p in found.values()]))
    outcomes = run_ranks([folder] * 2, ROOT / "tests/replay/rank_program.py", folder / "work.json")
    for code, out, err in outcomes:
        assert code == 0, err
        assert out == ""
    return found


@pytest.mark.parametrize(
    "name",
    [
        *TYPES,
        "encoder-decoder",
        "--config",
        "one sequence",
        "sequence unit",
        "categorical, initialisations",
    ],
)
def test_two_ranks_give_the_numbers_of_one(
    cases: dict[str, tuple[dict[str, Any], Path]], name: str
) -> None:
    keywords, file = cases[name]
    one = json.loads(render(analyze(**keywords, cache=False), "json"))
    two = json.loads(file.read_text())
    assert two["checkpoints"][0]["replay"]["notes"][0] == "batches shared among 2 ranks"
    assert_equal(one, two, r"replay\.(notes|memory)")


def test_torchrun_prints_once_and_keeps_what_one_process_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("analyze", SAMPLE, "--latest", "--cache-dir", tmp_path, "--max-tokens", 2000,
                 "--format", "json")  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    together = subprocess.run(
        [*torchrun, "-m", "moegeo_cli", *map(str, arguments)], cwd=ROOT, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    assert together.stderr.count("verdict:") == 1
    two = json.loads(together.stdout)  # one document: rank 1 printed nothing
    alone = call(capsys, *arguments)
    assert "[1/" not in alone.err, "nothing was measured again"
    assert alone.out == together.stdout  # from the store that rank 0 wrote
    assert_equal(
        json.loads(render(analyze(SAMPLE, latest=True, cache=False, max_tokens=2000), "json")), two
    )


def test_a_missing_probe_ends_all_ranks_with_one_message(tmp_path: Path) -> None:
    outcomes = run_forks([tmp_path] * 2, "analyze", SAMPLE, "--probe", "no.txt")
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert "no.txt" in outcomes[0][2]
    assert outcomes[1][1:] == ("", "")


@pytest.fixture
def two_places(tmp_path: Path, tiny: Callable[..., Path]) -> list[Path]:
    """Two working directories; only rank 0's has a checkpoint of that name, and the probe."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "run").symlink_to(tiny("mixtral"))
    write_probe(here / "probe.jsonl", random_ids([9, 8, 7]))
    return [here, there]


ANALYZE = ("analyze", "run", "--probe", "probe.jsonl", "--no-cache")


@pytest.mark.slow
def test_ranks_that_read_other_weights_are_refused(
    two_places: list[Path], tiny: Callable[..., Path]
) -> None:
    (two_places[1] / "run").symlink_to(tiny("mixtral", 1))
    outcomes = run_forks(two_places, *ANALYZE)
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert "the routers' weights of rank 1 differ from those of rank 0" in outcomes[0][2]
    assert outcomes[1][1:] == ("", "")


@pytest.mark.slow
def test_streaming_is_refused_among_ranks(two_places: list[Path]) -> None:
    outcomes = run_forks(two_places[:1] * 2, *ANALYZE, "--stream")
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert "each rank holds the whole model" in outcomes[0][2]


@pytest.mark.slow
def test_an_error_of_another_rank_is_rank_0s_message(two_places: list[Path]) -> None:
    outcomes = run_forks(two_places, *ANALYZE)
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert "error[MG-E" in outcomes[0][2]
    assert "bug" not in outcomes[0][2]
    assert outcomes[1][1:] == ("", "")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_other(tmp_path: Path, victim: int) -> None:
    pair = start_forks([tmp_path] * 2, "analyze", SAMPLE, "--no-cache")
    pair[0].wait_for("[1/5]")
    pair[victim].kill()
    code, _, words = pair[1 - victim].end()
    assert code == 2
    assert ("a rank has ended" in words) is (victim == 1)


# Sums of float32 over the parts of a matrix are added in another order.
PARTS = 1e-5
SPLIT = [
    ("mixtral", "expert"), *(
        pytest.param(kind, split, marks=pytest.mark.slow)
        for kind, split in (
            ("mixtral", "tensor"), ("deepseek_v3", "expert"), ("deepseek_v3", "tensor"),
            ("qwen2_moe", "expert"), ("qwen2_moe", "tensor"), ("gpt_oss", "expert"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "split"), SPLIT)
def test_a_model_split_among_ranks_gives_the_numbers_of_one(
    kind: str, split: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    probe = write_probe(tmp_path / "odd.jsonl", random_ids([5 + (7 * i) % 29 for i in range(17)]))
    given: dict[str, Any] = {"probe": probe, "batch_size": 3}
    file = tmp_path / "two.json"
    outcomes = run_forks(
        [tmp_path] * 2, "analyze", tiny(kind), "--probe", probe, "--batch-size", 3, "--no-cache",
        "--parallel", split, "-o", file,
    )  # fmt: skip
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes[0][2]
    assert outcomes[1][1:] == ("", "")
    one = json.loads(render(analyze(tiny(kind), **given, cache=False), "json"))
    two = json.loads(file.read_text())
    [checkpoint] = two["checkpoints"]
    told = f"model split among 2 ranks by {split}s, by its plan in transformers"
    assert told in checkpoint["replay"]["notes"]
    assert two["settings"].pop("parallel") == split
    for layer in checkpoint["layers"]:  # weights that no rank holds whole are not searched
        assert layer["experts_nonfinite"] is None
    but = r"replay\.(notes|memory)|experts_(nonfinite|zero|identical)|measurements|verdict"
    assert_equal(one, two, but, PARTS)


def test_a_split_that_is_not_there_is_refused_by_name(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from moegeo_cli.measuring.measurer import Measurer
    from moegeo_cli.models.parallel import ParallelModels

    cpu = torch.device("cpu")
    checkpoint = Checkpoint(tiny("gpt_oss"), ".")
    with pytest.raises(MoegeoError, match="gpt_oss has no plan in transformers to split it by ten"):
        ParallelModels("tensor", 2, cpu, torch.float32).load(checkpoint)
    with pytest.raises(MoegeoError, match="6 experts cannot be split evenly among 4 ranks"):
        ParallelModels("expert", 4, cpu, torch.float32).load(Checkpoint(tiny("mixtral"), "."))
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([9, 8, 7]))
    with pytest.raises(MoegeoError, match="--parallel needs several ranks"):
        analyze(tiny("mixtral"), parallel="expert", cache=False, probe=probe)
    with pytest.raises(MoegeoError, match="--parallel expert with --baseline init"):
        analyze(tiny("mixtral"), parallel="expert", cache=False, probe=probe, baseline="init")
    with pytest.raises(MoegeoError, match="--parallel expert or tensor does not go with"):
        analyze(tiny("mixtral"), parallel="expert", cache=False, probe=probe, stream=True)
    with pytest.raises(MoegeoError, match="--parallel works only on the command line"):
        Measurer(
            checkpoint.architecture, {},
            load_probe(probe, vocab_size=64, tokenizer_dir=tmp_path), np.zeros(3, dtype=int),
            Settings(parallel="expert"), ranks=Ranks(0, 2, 0),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "words"),
    [("--tp", "--parallel tensor"), ("--tensor-parallel", "--parallel tensor"),
     ("--ep", "--parallel expert"), ("--pp", "moegeo has no pipeline parallelism")],
)  # fmt: skip
def test_other_tools_options_for_parallelism_are_answered_with_ours(
    option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from moegeo_cli.cli.app import run

    assert run(["analyze", str(SAMPLE), option, "2"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "torchrun" in told


@pytest.mark.parametrize(
    "place", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "localhost"}]
)
def test_half_an_environment_is_refused(
    place: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moegeo_cli.cli.app import run

    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert run(["inspect", str(SAMPLE)]) == 2
    assert "unset WORLD_SIZE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["experts", "routing"])
def test_the_lenses_say_among_ranks_what_one_process_says(
    command: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Rank 0 computes them alone, and the others print nothing."""
    probe = write_probe(tmp_path / "odd.jsonl", random_ids([5 + (7 * i) % 29 for i in range(9)]))
    arguments = ("-m", "moegeo_cli", command, tiny("mixtral"), "--probe", probe, "--no-cache",
                 "--format", "json")  # fmt: skip
    alone = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    first, second = run_ranks([tmp_path] * 2, *arguments)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == ""
    assert_equal(json.loads(alone.stdout), json.loads(first[1]), r"seconds|memory")
