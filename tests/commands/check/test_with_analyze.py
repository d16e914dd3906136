"""What the files tell, in `moegeo analyze` and `moegeo compare`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from moegeo_cli import analyze, compare
from moegeo_cli.errors import MoegeoError
from moegeo_cli.records import Finding, RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import json_report, render
from moegeo_cli.verdict.files import merge_file_outcomes
from moegeo_cli.verdict.rules import Found, Skipped
from tests.commands.check.planting import is_expert, is_router, load_file, save_file, save_run
from tests.commands.check.test_findings import holding
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    return write_probe(path, random_ids([8 + i % 5 for i in range(20)]))


def found(run: RunRecord, name: str) -> Finding | None:
    assert run.verdict is not None
    return next((f for f in run.verdict.findings if f.name == name), None)


def test_analyze_lists_what_the_files_tell(tmp_path: Path, probe: Path) -> None:
    keep = holding(lambda n: is_expert(n) and ".layers.2." in n, 0, since=100)
    run = save_run(tmp_path / "run", "mixtral", change=keep)
    record = analyze(run, probe=probe, baseline="none", fisher="categorical")
    reset = found(record, "experts-reset")
    assert reset is not None
    assert (reset.severity, reset.layers, reset.steps) == ("failing", (2,), (200,))
    assert record.verdict is not None
    assert record.verdict.status == "failing"
    assert any("experts-reset" in i.findings for i in record.interventions)
    assert len(list((run / ".moegeo").glob("check-*.json"))) == 3
    jsonschema.validate(
        json.loads(json_report.render(record)),
        json_report.schema("moegeo.run", strict=True),
    )


def test_analyze_and_check_name_frozen_routers_once_and_alike(tmp_path: Path, probe: Path) -> None:
    keep = holding(lambda n: is_router("qwen3_moe", n), 0)
    run = save_run(tmp_path / "run", "qwen3_moe", change=keep)
    record = analyze(run, probe=probe, baseline="none", fisher="categorical", cache=False)
    assert record.verdict is not None
    frozen = [f for f in record.verdict.findings if f.name == "router-frozen"]
    assert len(frozen) == 1
    assert "since step 0" in frozen[0].message
    assert not (run / ".moegeo").exists()


def test_a_pruned_expert_is_masked_and_not_damaged(tmp_path: Path, probe: Path) -> None:
    run = save_run(tmp_path / "run", "qwen3_moe", (100,))
    path = run / "checkpoint-100" / "model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.gate.weight"][3] = -1e9
    for name in state:
        if ".layers.1.mlp.experts.3." in name:
            state[name].zero_()
    save_file(state, path, {"format": "pt"})
    record = analyze(run, probe=probe, baseline="none", fisher="categorical", cache=False)
    masked = found(record, "experts-masked")
    assert masked is not None
    [layer] = [x for x in record.newest.layers if x.layer == 1]
    assert layer.masked == (3,)
    assert layer.load is not None
    # A large row is a mask for the inputs that it points away from alone.
    assert layer.load[3] > 0.0
    assert masked.severity == "watch"
    assert f"expert 3 in layer 1 take {layer.load[3]:.1%} of the load" in masked.message
    assert found(record, "experts-damaged") is None, "said once"


def test_a_mask_that_holds_is_info_and_its_zeros_are_no_damage(tmp_path: Path, probe: Path) -> None:
    run = save_run(tmp_path / "run", "deepseek_v3", (100,))
    path = run / "checkpoint-100" / "model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.gate.e_score_correction_bias"][3] = -torch.inf
    for name in state:
        if ".layers.1.mlp.experts.3." in name:
            state[name].zero_()
    save_file(state, path, {"format": "pt"})
    record = analyze(run, probe=probe, baseline="none", fisher="categorical", cache=False)
    masked = found(record, "experts-masked")
    assert masked is not None
    assert masked.severity == "info"
    assert found(record, "experts-damaged") is None


def test_compare_says_which_tensors_two_runs_share(tmp_path: Path, probe: Path) -> None:
    a = save_run(tmp_path / "a", "qwen3_moe", (100,))
    shutil.copytree(a, tmp_path / "b")
    path = tmp_path / "b" / "checkpoint-100" / "model.safetensors"
    state = load_file(path)
    for name in state:
        if is_router("qwen3_moe", name) or ".layers.2.mlp.experts.4." in name:
            state[name] += 0.01
    save_file(state, path, {"format": "pt"})
    record = compare(a, tmp_path / "b", probe=probe, baseline="none", cache=False)
    shared = record.pairs[-1].shared
    assert shared is not None
    assert (shared.routers, shared.routers_of) == (0, 2)
    assert (shared.experts, shared.experts_of) == (11, 12)
    assert shared.attention == shared.attention_of > 0
    assert shared.layers[1].experts == (0, 1, 2, 3, 5)
    text = render(record, "rich")
    assert "0 of 2 routers, 11 of 12 experts" in " ".join(text.split())
    document: Any = json.loads(render(record, "json"))
    jsonschema.validate(document, json_report.schema("moegeo.compare", strict=True))
    assert json_report.read(render(record, "json"), ComparisonRecord) == record


def test_files_decide_what_they_know_better() -> None:
    model = {"experts-damaged": Found("watch", "zeros"), "router-nonfinite": Found("failing", "x")}
    both = merge_file_outcomes(model, {"experts-damaged": None, "router-nonfinite": None})
    assert both["experts-damaged"] is None, "the files know that the expert is masked"
    assert both["router-nonfinite"] is model["router-nonfinite"], "logits are not in the files"
    unread = merge_file_outcomes(model, {"experts-damaged": Skipped("not read")})
    assert unread["experts-damaged"] is model["experts-damaged"]
    assert isinstance(merge_file_outcomes(model, {})["experts-reset"], Skipped)


def test_files_are_read_after_everything_that_is_refused_at_once(
    tmp_path: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moegeo_cli.commands.check import run as module

    run = save_run(tmp_path / "run", "mixtral", (0,))
    monkeypatch.setattr(module, "sum_checkpoint", lambda *a, **b: pytest.fail("read too soon"))
    with pytest.raises(MoegeoError, match="no tokenizer"):
        analyze(run, cache=False)
    with pytest.raises(MoegeoError, match="no checkpoint of step"):
        analyze(run, probe=probe, baseline="7", cache=False)


def test_files_that_cannot_be_read_are_a_reason_and_no_error(
    tmp_path: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moegeo_cli.commands.check import run as module

    def refuse(*arguments: Any, **options: Any) -> None:
        raise MoegeoError("a file went away")

    run = save_run(tmp_path / "run", "mixtral", (0,))
    monkeypatch.setattr(module, "sum_checkpoint", refuse)
    record = analyze(run, probe=probe, baseline="none", fisher="categorical", cache=False)
    assert record.verdict is not None
    [told] = [c for c in record.verdict.checks if c.name == "experts-reset"]
    assert (told.outcome, told.reason) == (
        "skipped", "the files could not be checked: a file went away",
    )  # fmt: skip


@pytest.mark.parametrize(("level", "holds"), [(6.9, True), (0.0, False)])
def test_what_rounding_of_a_bias_costs_is_told_by_the_probe_s_tokens(
    *, level: float, holds: bool, tmp_path: Path, probe: Path
) -> None:
    """The bias of DeepSeek-V3's kind, 6.9 and its small differences, saved in bfloat16."""
    path = tmp_path / "run" / "checkpoint-100"
    save_tiny("deepseek_v3", path, n_group=1, topk_group=1)
    state = load_file(path / "model.safetensors")
    for name in state:
        if name.endswith("e_score_correction_bias"):
            state[name] = (level + 0.03 * torch.randn(8)).bfloat16()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    record = analyze(path.parent, probe=probe, baseline="none", cache=False, fisher="categorical")
    finding = found(record, "bias-rounded")
    for layer in record.newest.layers:
        metric = layer.metrics["bias_changes"]
        assert metric.value is not None
        assert (metric.value > 0.02) == holds
    assert (finding is not None) == holds
    if finding is not None:
        assert finding.severity == "info"
        assert "of the sampled tokens get other experts" in finding.message
