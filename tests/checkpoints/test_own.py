"""State dicts in any file: which count as checkpoints, in which order, under which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.own import describe_own, find_own_routers, open_own_run
from moegeo_cli.checkpoints.patterns import compile_pattern
from moegeo_cli.checkpoints.wrappers import unwrap_name
from moegeo_cli.errors import MoegeoError, NoCheckpointError, PathError, UsageError

STATE = {"blocks.0.gate.weight": torch.arange(12.0).reshape(4, 3), "head.weight": torch.ones(2, 3)}


def write(path: Path, document: Any = STATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(document, path)
    else:
        torch.save(document, path)
    return path


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors"])
def test_one_file_is_a_checkpoint_by_itself_and_in_its_folder(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name)
    for place in (file, tmp_path):
        run = open_own_run(place)
        assert run.is_single
        assert run.newest.path == file
        index = open_weights(run.newest.path)
        np.testing.assert_array_equal(
            index.read("blocks.0.gate.weight"), np.arange(12.0).reshape(4, 3)
        )


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module"])
def test_a_nested_state_dict_is_found(key: str, tmp_path: Path) -> None:
    file = write(tmp_path / "w.pt", {"epoch": torch.tensor(3), key: STATE, "optimizer": {}})
    assert open_weights(file).names() == tuple(sorted(STATE))


def test_steps_are_told_by_words(tmp_path: Path) -> None:
    for name in ("net2_step_100.pt", "net2_step_20.pt", "net2_step_3.pt"):
        write(tmp_path / name)
    write(tmp_path / "optimizer_100.pt", {"state": {}})
    write(tmp_path / "step-7-tokens2B" / "weights.pt")
    write(tmp_path / "step-7-tokens2B" / "scheduler.pt", {"last": 1})
    write(tmp_path / "twin_step_20.pt")
    write(tmp_path / "pretrain_768_moe.pth")
    write(tmp_path / "epoch-2.pt")
    write(tmp_path / "best.pt")
    run = open_own_run(tmp_path)
    assert [c.step for c in run.checkpoints] == [3, 7, 20, 100]
    reasons = {s.path: s.reason for s in run.skipped}
    assert reasons == {
        "best.pt": "no step in its name",
        "epoch-2.pt": "no step in its name",
        "pretrain_768_moe.pth": "no step in its name",
        "twin_step_20.pt": "the same step as net2_step_20.pt",
    }
    assert not run.has_gaps


def test_epochs_order_where_no_name_tells_a_step(tmp_path: Path) -> None:
    for epoch in (10, 2):
        write(tmp_path / f"epoch-{epoch}.pt")
    assert [c.step for c in open_own_run(tmp_path).checkpoints] == [2, 10]


def test_numbers_that_may_be_anything_are_no_steps(tmp_path: Path) -> None:
    for width in (768, 1024):
        write(tmp_path / f"moe_{width}.pt")
    with pytest.raises(NoCheckpointError, match=r"moe_1024\.pt[\s\S]*step-100\.pt"):
        open_own_run(tmp_path)


def test_runs_of_own_files_lie_deeper(tmp_path: Path) -> None:
    """As Lightning and Composer lay their folders and files out."""
    for place in ("version_0", "version_1"):
        for name in ("epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt"):
            write(tmp_path / "logs" / place / "checkpoints" / name)
    run = open_own_run(tmp_path / "logs" / "version_0")
    assert [c.step for c in run.checkpoints] == [100, 200]
    with pytest.raises(NoCheckpointError, match="holds 2 runs") as caught:
        open_own_run(tmp_path / "logs")
    assert "version_0/checkpoints (2 checkpoints, step 100 to 200)" in str(caught.value.found)
    for batch in (80, 160):
        write(tmp_path / "composer" / f"ep2-ba{batch}-rank0.pt", {"state": {"model": STATE}})
    found = open_own_run(tmp_path / "composer")
    assert [c.step for c in found.checkpoints] == [80, 160]
    assert open_weights(found.newest.path).names() == tuple(sorted(STATE))


def test_the_layout_of_transformers_counts_too(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        write(folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    run = open_own_run(tmp_path)
    assert [c.relative for c in run.checkpoints] == ["checkpoint-1", "checkpoint-2"]
    assert open_own_run(tmp_path / "checkpoint-1").newest.step == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no weights"),
        ({"optimizer.pt": STATE, "readme.md": None}, "holds no weights"),
        ({"a.pt": STATE, "b.pt": STATE}, "none of the 2 checkpoints in"),
    ],
)
def test_folders_without_an_answer(files: dict[str, Any], words: str, tmp_path: Path) -> None:
    for name, state in files.items():
        if state is None:
            (tmp_path / name).write_text("")
        else:
            write(tmp_path / name, state)
    with pytest.raises(NoCheckpointError, match=words):
        open_own_run(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="does not exist"):
        open_own_run(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [0, 3, 50])
def test_a_cut_file_is_refused(size: int, tmp_path: Path) -> None:
    file = write(tmp_path / "w.pt")
    file.write_bytes(file.read_bytes()[:-size] if size else b"")
    with pytest.raises(MoegeoError, match=r"w\.pt is truncated"):
        open_weights(open_own_run(tmp_path).newest.path).names()


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("blocks.*.gate", "blocks.10.gate", True),
        ("blocks.*.gate", "blocks.1.mlp.gate", True),
        ("blocks.*.gate", "blocks.1.gate.proj", False),
        ("blocks.?.gate", "blocks.10.gate", False),
        (r"re:blocks\.\d+\.gate", "blocks.10.gate", True),
        (r"re:blocks\.\d+\.gate", "blocks.a.gate", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert compile_pattern(pattern)(name) is fits


def test_wrappers_before_a_name() -> None:
    name = "module._orig_mod.module.a.module.b"
    assert unwrap_name(name, inner=False) == "a.module.b"
    assert unwrap_name(name) == "a.b"
    assert unwrap_name("base_model.model.a._fsdp_wrapped_module.b") == "a.b"


def test_routers_and_sizes_from_the_files_and_the_options(tmp_path: Path) -> None:
    index = open_weights(write(tmp_path / "w.pt", {f"module.{n}": t for n, t in STATE.items()}))
    assert find_own_routers(index, "blocks.*.gate") == {"module.blocks.0.gate": (4, 3)}
    assert find_own_routers(index, None) == {"module.blocks.0.gate": (4, 3)}

    def describe(config: dict[str, Any], **options: Any) -> Any:
        return describe_own("a:b", config, index, **{"pattern": None, "top_k": None,
                                                     "scoring": None, **options})  # fmt: skip

    bare = describe({})
    assert (bare.experts, bare.top_k, bare.scoring, bare.unselected_gradient) == (
        4, None, None, "verify",
    )  # fmt: skip
    stated = describe({"num_experts": 8, "num_experts_per_tok": 3, "scoring_func": "sigmoid"})
    assert (stated.experts, stated.top_k, stated.scoring) == (8, 3, "sigmoid")
    assert describe({"num_experts_per_tok": 3}, top_k=1).top_k == 1
    for top_k in (0, 5):
        with pytest.raises(UsageError, match="--top-k is impossible") as error:
            describe({}, top_k=top_k)
        assert error.value.found == f"{top_k} of 4 experts"
    with pytest.raises(UsageError, match="the scoring 'mystery' is not known"):
        describe({}, scoring="mystery")
