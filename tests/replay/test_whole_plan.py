"""The plan of a model held whole against what the model and its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.experts.memory import bytes_beside
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.errors import ResourceError, UsageError
from moegeo_cli.measuring import provenance
from moegeo_cli.models.filling import fill_model, open_skeleton
from moegeo_cli.models.fitting import Request
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.memory.activations import BatchTracer
from moegeo_cli.models.memory.machine import cgroup_rooms
from moegeo_cli.models.memory.repeating import find_repeats
from moegeo_cli.models.memory.whole import WholePlanner, weight_bytes
from moegeo_cli.models.sources import WholeModels
from moegeo_cli.probes.loading import load_probe
from moegeo_cli.replay.plan import Plan
from moegeo_cli.routers.finding import find_routers
from moegeo_cli.settings import Settings
from tests.architectures.zoo import save_tiny
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import build_tiny

CPU = torch.device("cpu")
FISHERS = (("categorical", "token"), ("empirical", "position"))


def planner(path: Path, lengths: list[int], **changes: Any) -> WholePlanner:
    files = open_skeleton(Checkpoint(path), CPU, torch.float32)
    options: dict[str, Any] = {"fishers": FISHERS, "groups_S": np.zeros(len(lengths), int)}
    batch_size = changes.pop("batch_size", None)
    return WholePlanner(files, Plan(**options, **changes), lengths, 0, batch_size)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt_oss", "gemma4_text", "jetmoe"])
def test_a_model_filled_by_groups_is_the_model(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path)
    usual = load_model(Checkpoint(tmp_path), CPU, torch.float32)
    filled = fill_model(None, Checkpoint(tmp_path), CPU, torch.float32)
    again = fill_model(filled, Checkpoint(tmp_path), CPU, torch.float32)
    for model in (filled, again):
        assert weight_bytes(model) == weight_bytes(usual), "tied parameters are one"
        for name, tensor in usual.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(usual(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_weights_and_the_trace_are_those_of_the_model(model_type: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path)
    found = planner(tmp_path, [32] * 8)
    assert found.weights == weight_bytes(load_model(Checkpoint(tmp_path), CPU, torch.float32))
    before = torch.get_rng_state()
    whole, half = found.make(256, 0), found.make(128, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert whole.by == "trace"
    for term in ("activations", "logits"):
        assert 1.5 < whole.terms[term] / half.terms[term] <= 2.5, "it grows with the batch"


def test_a_model_with_a_state_along_the_sequence_is_traced_without_a_bound(tmp_path: Path) -> None:
    save_tiny("minimax", tmp_path)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([9, 8]))
    [checkpoint] = analyze(tmp_path, probe=probe, baseline="none", cache=False).checkpoints
    assert checkpoint.replay["memory"]["by"] == "trace"


@pytest.mark.parametrize(("model_type", "changes", "kept"), [
    ("qwen3_moe", {"mlp_only_layers": []}, 3),
    ("deepseek_v3", {}, 4),
    ("gpt_oss", {"layer_types": ["sliding_attention", "full_attention"] * 4}, 6),
])  # fmt: skip
def test_a_few_of_the_layers_that_repeat_tell_what_all_take(
    model_type: str, changes: dict[str, Any], kept: int, tmp_path: Path
) -> None:
    """Equal layers; one dense layer first; two kinds of attention in turn."""
    build_tiny(model_type, num_hidden_layers=8, **changes).save_pretrained(tmp_path)
    skeleton = open_skeleton(Checkpoint(tmp_path), CPU, torch.float32).model
    whole, few = (BatchTracer(skeleton, CPU, shorten=shorten) for shorten in (False, True))
    assert [r.kept for r in find_repeats(skeleton, few.routers)] == [kept]
    for fishers in (FISHERS[:1], FISHERS):
        plan = Plan(fishers=fishers, groups_S=np.zeros(8, int))
        expected = whole.trace((8, 16), plan, padded=True)
        assert expected.traced
        assert few.trace((8, 16), plan, padded=True) == expected
    assert few.shorten, "the model's code ran with fewer layers"


def test_layers_that_differ_are_all_traced(tmp_path: Path) -> None:
    """A number that a layer holds, or that the config says of each layer, may decide its cost."""
    build_tiny("qwen3_moe", num_hidden_layers=8).save_pretrained(tmp_path)
    skeleton = open_skeleton(Checkpoint(tmp_path), CPU, torch.float32).model
    routers = find_routers(skeleton)
    for n, layer in enumerate(skeleton.model.layers):
        layer.window = n
    assert find_repeats(skeleton, routers) == []
    for layer in skeleton.model.layers:
        del layer.window
    assert len(find_repeats(skeleton, routers)) == 1
    skeleton.config.windows = list(range(8))
    assert find_repeats(skeleton, routers) == []


def test_the_planned_tree_becomes_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built once, and tracing it leaves nothing in it."""
    save_tiny("qwen3_moe", tmp_path)
    checkpoint = Checkpoint(tmp_path)
    files = open_skeleton(checkpoint, CPU, torch.float32)
    options: dict[str, Any] = {"fishers": FISHERS, "groups_S": np.zeros(4, int)}
    assert WholePlanner(files, Plan(**options), [16] * 4, 0, None).make(64, 0).by == "trace"
    source = WholeModels(CPU, torch.float32, files=files)
    monkeypatch.delattr("moegeo_cli.models.filling.open_skeleton")
    model, usual = source.load(checkpoint), load_model(checkpoint, CPU, torch.float32)
    assert model is files.model
    for name, tensor in usual.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for one, other in zip(usual.buffers(), model.buffers(), strict=True):
        assert torch.equal(one, other)
    assert source.load(checkpoint) is model, "and takes the next weights"


def test_code_that_asks_for_values_is_estimated(tmp_path: Path) -> None:
    save_tiny("jetmoe", tmp_path)
    found = planner(tmp_path, [32] * 8).make(256, 0)
    assert found.by == "widths"
    assert found.terms["activations"] > 0


def test_batches_become_smaller_until_they_fit(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    found = planner(tmp_path, [64] * 32)
    assert found.batches() == [2048, 1024, 512, 256, 128, 64]
    usual, least = found.make(2048, 0).bound, found.least(0).bound
    assert found.fit(0, usual).positions == 2048  # type: ignore[union-attr]
    fewer = found.fit(0, (usual + least) // 2)
    assert fewer is not None
    assert 64 < fewer.positions < 2048
    assert found.fit(0, least - 1) is None
    assert planner(tmp_path, [64] * 32, batch_size=4).batches() == [256], "as it was asked for"


def test_without_a_bound_the_machine_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("mixtral", tmp_path)
    monkeypatch.setattr("moegeo_cli.models.fitting.free_bytes", lambda device: 1000)
    monkeypatch.setattr("moegeo_cli.models.sources.free_bytes", lambda device: 1000)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([16] * 4))
    with pytest.raises(ResourceError, match="does not fit this machine") as error:
        analyze(tmp_path, probe=probe, baseline="none", cache=False)
    assert "largest terms" in str(error.value.found)


def test_a_bound_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--memory works only with transformers models"):
        analyze(
            "sample_checkpoints/digits-moe", model="sample_checkpoints.digits:build",
            router="blocks.*.mixture.router", cache=False, memory="8GB",
            probe="sample_checkpoints/digits-moe/probe.safetensors",
        )  # fmt: skip


@pytest.mark.parametrize("kind", [ExpertSettings, RoutingSettings])
def test_what_a_lens_keeps_is_a_part_of_the_bound(kind: Any) -> None:
    for memory in (10**9, 64 * 10**9):
        settings = kind(memory=memory)
        assert settings.replay.memory == memory, "errors name the bound that was given"
        assert 0 < settings.kept_bytes <= memory // 8
        assert 2 * getattr(settings, "buffer_bytes", 0) <= memory // 8
    assert kind().replay.memory is None


def test_pairs_of_experts_are_planned_by_their_number() -> None:
    """Eight arrays by group of one layer's pairs, and fifteen numbers of every layer's record."""
    architecture = describe_architecture({
        "model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "hidden_size": 64,
    })  # fmt: skip
    found = [
        bytes_beside(ExpertSettings(), architecture, groups, tokens)
        for groups, tokens in ((32, 1000), (16, 1000), (32, 2000))
    ]
    assert found[0] - found[1] == 8 * 8 * 16 * 128**2
    assert found[2] - found[0] == 4 * 64 * 48 * 1000, "inputs of all layers, in float32"
    assert found[0] > 48 * 128**2 * 15 * 8, "the matrices of all layers"
    one = bytes_beside(ExpertSettings(layers=(0,)), architecture, 32, 1000)
    assert found[0] - one == 47 * (4 * 64 * 1000 + 15 * 60 * 128**2)


def test_a_router_that_switches_experts_off_is_planned_with_every_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sums need all tokens at the end: whether an expert is off, the choices tell."""
    monkeypatch.setattr("moegeo_cli.models.fitting.sample_size", lambda shapes: 8)
    path = tmp_path / "m"
    save_tiny("deepseek_v3", path)
    probe = load_probe(
        write_probe(tmp_path / "p.jsonl", random_ids([16] * 4)), vocab_size=1000, tokenizer_dir=path
    )

    def kept(*, every_token: bool = False) -> int:
        checkpoint = Checkpoint(path)
        request = Request(
            checkpoint, checkpoint.architecture, probe, np.zeros(4, int), Settings(), CPU,
            torch.float32, every_token=every_token,
        )  # fmt: skip
        return request.tokens_kept([(4, 16, 2)])

    assert (kept(), kept(every_token=True)) == (8, 64)
    state = load_file(path / "model.safetensors")
    name = next(n for n in state if n.endswith("e_score_correction_bias"))
    state[name][1] = -torch.inf
    save_file(state, path / "model.safetensors", {"format": "pt"})
    assert kept() == 64


@pytest.mark.parametrize(("line", "mount", "names"), [
    ("0::/job/task", "", ("memory.max", "memory.current", "inactive_file")),
    ("4:cpu,memory:/job/task", "memory",
     ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
])  # fmt: skip
def test_the_limits_of_cgroups_count(
    line: str, mount: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    for path, limit in (("job", "1000"), ("job/task", "max")):
        folder = tmp_path / "root" / mount / path
        folder.mkdir(parents=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("700\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} 300\n")
    (tmp_path / "membership").write_text(f"1:pids:/other\n{line}\n")
    assert list(cgroup_rooms(tmp_path / "root", tmp_path / "membership")) == [600]
    assert list(cgroup_rooms(tmp_path / "root", tmp_path / "absent")) == []


def test_the_device_that_auto_means_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.deciding_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(provenance, "may_have_accelerator", lambda: False)
    assert provenance.deciding_device("auto") == "cpu"
    monkeypatch.setattr(provenance, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(
        "moegeo_cli.models.loading.resolve_device", lambda name: torch.device("cuda", 0)
    )
    assert provenance.deciding_device("auto") == "cuda"
