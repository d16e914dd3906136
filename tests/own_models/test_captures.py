"""Captured router inputs against weights from the files: what needs no loss equals a full run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze, capture_routers, experts
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.errors import OutputError, ProbeError, UnsupportedArchitectureError, UsageError
from moegeo_cli.expert_functions.blocks import find_experts
from moegeo_cli.records import CheckpointRecord, RunRecord
from moegeo_cli.replay.reading import RouterTap
from moegeo_cli.reports import json_report
from moegeo_cli.routers.finding import find_routers
from tests.architectures import oracle
from tests.architectures.table import write_probe
from tests.architectures.test_every_type import TYPES
from tests.architectures.zoo import save_tiny
from tests.command import call
from tests.own_models import models

# Softmax and sigmoid, groups and biases, biased logits, two routers a layer, a router that
# normalises its input, one whose weight also scores shared experts, a hash.
FEW = ("deepseek_v4", "gemma4_text", "inkling_text", "jetmoe")
MANY = ("aria_text", "axk1", "bailing_hybrid", "beam", "cohere2_moe", "dbrx", "deepseek_v2",
        "ernie4_5_moe", "glm4_moe_lite", "hunyuan_v1_moe", "jamba", "laguna", "llama4_text",
        "longcat_flash", "minimax_m2", "nemotron_h", "qwen3_next", "zaya", "gemma4")  # fmt: skip
NEEDS_CHOICES = {"deepseek_v4", "zaya"}


@pytest.fixture
def probe(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    path = tmp_path / "probe.jsonl"
    return path, write_probe(path)


def capture(model: Any, ids: list[list[int]], path: Path, **options: Any) -> capture_routers:
    with torch.no_grad(), capture_routers(model, path, **options) as found:
        for sequence in ids:
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    return found


def only_inputs(source: Path, target: Path, **changes: Any) -> None:
    """The same capture without what the model made of the inputs."""
    tensors = load_file(source)
    with safe_open(source, "pt") as file:
        facts = json.loads(file.metadata()["moegeo.captures"])
    kept = {n: t for n, t in tensors.items() if n == "sequence" or n.endswith(".inputs")}
    facts = {k: v for k, v in {**facts, **changes}.items() if v is not None}
    save_file(kept, target, metadata={"moegeo.captures": json.dumps(facts)})


def of(path: Path, captures: Path, **options: Any) -> RunRecord:
    return analyze(path, captures=captures, baseline="none", cache=False, **options)


def assert_alike(full: CheckpointRecord, alone: CheckpointRecord) -> None:
    assert alone.coverage.routers_measured == alone.coverage.routers_found == len(full.layers)
    for one, other in zip(full.layers, alone.layers, strict=True):
        assert (one.router, one.layer, one.top_k) == (other.router, other.layer, other.top_k)
        np.testing.assert_allclose(one.load, other.load, atol=1e-9)
        for name, metric in one.metrics.items():
            if not name.startswith(("heterogeneity", "fhs", "low_sample")):
                found = other.metrics[name].value
                assert (found is None) == (metric.value is None), name
                assert (found or 0) == pytest.approx(metric.value or 0, rel=1e-4, abs=1e-6), name
        for name, metric in one.fisher["categorical"]["token"].items():
            if metric.value is not None:
                found = other.fisher["categorical"]["token"][name].value
                assert found == pytest.approx(metric.value, rel=1e-3)


def check_type(model_type: str, folder: Path, probe: tuple[Path, list[list[int]]]) -> None:
    save_tiny(model_type, folder / "model")
    file, ids = probe
    [full] = analyze(folder / "model", probe=file, baseline="none", cache=False).checkpoints
    model = oracle.load_whole(folder / "model")
    found = capture(model, ids, folder / "all.safetensors", checkpoint=folder / "model")
    assert found.problem is None
    assert found.tokens == sum(map(len, ids))
    [whole] = of(folder / "model", folder / "all.safetensors").checkpoints
    notes = " ".join(whole.replay["notes"])
    assert "captured at this checkpoint" in notes
    assert "each checked against weight" in notes
    if model_type != "zaya":  # the files' bias is not the one that transformers computes with
        assert_alike(full, whole)
    assert whole.loss.value is None
    assert "no loss" in (whole.loss.reason or "")
    assert all("categorical" in (layer.metrics["heterogeneity"].reason or "")
               for layer in whole.layers if layer.mean_probability is not None)  # fmt: skip
    only_inputs(folder / "all.safetensors", folder / "inputs.safetensors")
    if model_type in NEEDS_CHOICES:
        with pytest.raises(UnsupportedArchitectureError, match="cannot be computed"):
            of(folder / "model", folder / "inputs.safetensors")
        return
    [bare] = of(folder / "model", folder / "inputs.safetensors").checkpoints
    assert "choices: computed by the architecture's rule" in " ".join(bare.replay["notes"])
    assert_alike(full, bare)


@pytest.mark.parametrize("model_type", FEW)
def test_routers_alone_equal_a_full_run(
    model_type: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    check_type(model_type, tmp_path, probe)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MANY)
def test_routers_of_many_types_alone_equal_a_full_run(
    model_type: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    check_type(model_type, tmp_path, probe)


def sequences(count: int = 6) -> list[list[int]]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 64, int(n)).tolist() for n in generator.integers(5, 14, count)]


def test_another_checkpoints_inputs_are_said_to_be_an_approximation(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    here, there = tiny("mixtral", 0), tiny("mixtral", 1)
    model = AutoModelForCausalLM.from_pretrained(here).eval()
    known, unknown = tmp_path / "known.safetensors", tmp_path / "unknown.safetensors"
    capture(model, sequences(), known, checkpoint=here)
    capture(model, sequences(), unknown)
    for file in (known, unknown):
        first = of(there, file).checkpoints[0].replay["notes"][0]
        assert first.startswith("an approximation"), first
    mine = of(here, unknown).checkpoints[0]
    assert "these routers' own" in mine.replay["notes"][0]
    assert mine.layers == of(here, known).checkpoints[0].layers
    only_inputs(unknown, tmp_path / "bare.safetensors")
    assert "the capture names no checkpoint" in " ".join(
        of(here, tmp_path / "bare.safetensors").checkpoints[0].replay["notes"]
    )


def test_steps_tell_the_checkpoint_of_a_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    from transformers import AutoModelForCausalLM

    for step in (0, 10):
        shutil.copytree(tiny("mixtral", step // 10), tmp_path / "run" / f"checkpoint-{step}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-10").eval()
    file = tmp_path / "c.safetensors"
    capture(model, sequences(), file, step=10)
    run = analyze(tmp_path / "run", captures=file, fisher="categorical", cache=False)
    first, last = (c.replay["notes"][0] for c in run.checkpoints)
    assert first == "an approximation: the router inputs were captured at step 10, not here"
    assert last.startswith("router inputs alone, captured at this checkpoint")
    assert run.checkpoints[1].metrics["fhs"].value is not None


def test_a_router_whose_logits_are_not_its_product_is_not_measured(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    here = tiny("mixtral", 0)
    file = tmp_path / "c.safetensors"
    capture(AutoModelForCausalLM.from_pretrained(here).eval(), sequences(), file)
    tensors = load_file(file)
    name = next(n for n in tensors if ".1." in n and n.endswith(".logits"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, file, metadata={"moegeo.captures": '{"version": 1}'})
    run = of(here, file)
    coverage = run.checkpoints[0].coverage
    assert (coverage.routers_found, coverage.routers_measured) == (3, 2)
    assert "do not equal" in next(iter(coverage.not_measured.values()))
    assert run.status == "partial"


def test_padding_and_the_limit_and_recomputation(tmp_path: Path) -> None:
    from tests.tiny_models import build_tiny

    model = build_tiny("mixtral").train()
    model.gradient_checkpointing_enable()
    ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    file = tmp_path / "c.safetensors"
    before = sum(len(module._forward_hooks) for module in model.modules())
    with capture_routers(model, file, max_tokens=20, step=4) as found:
        found.domain = "code"
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        found.domain = "prose"
        model(input_ids=ids, attention_mask=mask)
    assert found.full
    assert found.tokens == 15  # two whole sequences: the third does not fit
    tensors = load_file(file)
    assert tensors["sequence"].tolist() == [0] * 9 + [1] * 6
    assert tensors["token_ids"].tolist() == ids[0].tolist() + ids[1, :6].tolist()
    assert {len(t) for t in tensors.values()} == {15}
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["moegeo.captures"])
    assert facts == {"version": 1, "step": 4, "training": True, "domains": ["code"]}
    assert sum(len(module._forward_hooks) for module in model.modules()) == before
    again = tmp_path / "again.safetensors"
    with capture_routers(model, again, max_tokens=20, step=4) as found:
        found.domain = "code"
        model(input_ids=ids, attention_mask=mask)
    assert again.read_bytes() == file.read_bytes()


def test_domains_reach_the_report(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    here = tiny("mixtral", 0)
    model = AutoModelForCausalLM.from_pretrained(here).eval()
    file = tmp_path / "c.safetensors"
    with torch.no_grad(), capture_routers(model, file, checkpoint=here) as found:
        for place, ids in enumerate(sequences(8)):
            found.domain = "even" if place % 2 == 0 else "odd"
            model(torch.tensor([ids]))
    run = of(here, file)
    assert run.probe["domains"] == {"even": 4, "odd": 4}
    assert set(run.checkpoints[0].layers[0].domain_load) == {"even", "odd"}
    both = of(here, file, max_tokens=30)
    assert both.probe["tokens"] <= 30


def test_a_fault_in_the_capture_never_stops_the_training(tmp_path: Path) -> None:
    class Twice(models.Causal):
        def forward(self, idx: torch.Tensor) -> Any:
            x = self.embed(idx)
            self.blocks[0](x)
            return self.blocks[1](x[:, :1])

    file = tmp_path / "c.safetensors"
    model = Twice()
    found = capture_routers(model, file, router="blocks.*.gate")
    with pytest.warns(RuntimeWarning, match="ended early"):
        model(torch.ones(2, 3, dtype=torch.long))
    model(torch.ones(2, 3, dtype=torch.long))
    with pytest.warns(RuntimeWarning, match="which rows"):
        found.close()
    assert "which rows belong to which sequence" in (found.problem or "")
    assert not file.exists()


def test_a_block_left_by_an_exception_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    model = models.Causal()

    def leave() -> None:
        with capture_routers(model, file, router="blocks.*.gate"):
            model(torch.ones(2, 3, dtype=torch.long))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_capture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = models.Causal()
    found = capture_routers(model, tmp_path / "file" / "c.safetensors", router="blocks.*.gate")
    model(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(OutputError, match="cannot be written"):
        found.close()


def test_options_describe_routers_of_no_library(tmp_path: Path) -> None:
    """Ranks' files in one folder, a plain state dict, and no config at all."""
    model = models.spread(models.Causal("sigmoid"), 0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for rank in (0, 1):
        found = capture_routers(model, tmp_path / "c" / f"{rank}.safetensors",
                                router="blocks.*.gate", max_tokens=100)  # fmt: skip
        model(torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(rank)))
        found.close()
    run = of(tmp_path / "weights.pt", tmp_path / "c", router="blocks.*.gate", top_k=2,
             scoring="sigmoid", fisher="categorical")  # fmt: skip
    assert (run.probe["sequences"], run.probe["tokens"]) == (8, 48)
    [checkpoint] = run.checkpoints
    assert "choices: computed" in " ".join(checkpoint.replay["notes"])
    x = torch.cat([load_file(tmp_path / "c" / f"{r}.safetensors")["router.blocks.1.gate.inputs"]
                   for r in (0, 1)])  # fmt: skip
    chosen = (x @ model.blocks[1].gate.weight.T).topk(2).indices
    load = torch.bincount(chosen.flatten(), minlength=models.EXPERTS) / chosen.numel()
    np.testing.assert_allclose(checkpoint.layers[1].load, load, atol=1e-9)


def test_captured_choices_of_no_expert(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    here, file = tiny("mixtral", 0), tmp_path / "c.safetensors"
    capture(AutoModelForCausalLM.from_pretrained(here).eval(), sequences(), file)
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith(".selected"))
    for changed in (torch.full_like(tensors[name], 6), tensors[name][:, :1].contiguous()):
        save_file({**tensors, name: changed}, file, metadata={"moegeo.captures": '{"version": 1}'})
        with pytest.raises(ProbeError, match="not of its experts"):
            of(here, file)


def test_what_does_not_go_with_captures(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tiny("mixtral")
    file = tmp_path / "c.safetensors"
    with pytest.raises(ProbeError, match="no captured router inputs"):
        of(here, file)
    model = models.Causal()
    found = capture_routers(model, file, router="blocks.*.gate")
    model(torch.ones(2, 3, dtype=torch.long))
    found.close()
    with pytest.raises(ProbeError, match="do not fit the checkpoint"):
        of(here, file)
    with pytest.raises(UsageError, match="need no model"):
        of(here, file, model="a:b")
    with pytest.raises(UsageError, match="replace the probe"):
        of(here, file, probe="probe.jsonl")
    with pytest.raises(UsageError, match="fresh initialisation"):
        analyze(here, captures=file, baseline="init")
    outcome = call(capsys, "analyze", here, "--captures", file, "--fisher", "adam")
    assert outcome.code == 2
    assert "adam" in outcome.err


def write_trace(folder: Path, steps: list[dict[int, dict[str, Any]]], rank: int = 0) -> None:
    """A folder as Megatron's router tracer leaves it: bfloat16 rows beside JSON lines."""
    folder.mkdir(exist_ok=True)
    lines, rows = [], {"hs": b"", "logit": b""}
    for step, routers in enumerate(steps):
        for layer, seen in routers.items():
            chosen = seen["selected"]
            record = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer,
                      "rank": rank, "num_tokens": len(chosen), "topk": chosen.shape[1]}  # fmt: skip
            for prefix, kind in (("hs", "inputs"), ("logit", "logits")):
                data = seen[kind].bfloat16().contiguous().view(torch.int16).numpy().tobytes()
                record |= {f"{prefix}_offset": len(rows[prefix]), f"{prefix}_bytes": len(data),
                           f"{prefix}_shape": list(seen[kind].shape)}  # fmt: skip
                rows[prefix] += data
            record["top_indices"] = chosen.tolist()
            lines.append(json.dumps(record))
    (folder / f"router_trace_rank{rank}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"hidden_states_rank{rank}.bin").write_bytes(rows["hs"])
    (folder / f"logits_rank{rank}.bin").write_bytes(rows["logit"])


def test_megatrons_trace(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    here = tiny("mixtral", 0)
    model = AutoModelForCausalLM.from_pretrained(
        here, dtype=torch.bfloat16, experts_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(0)
    steps = []
    for count in (3, 2):
        seen: dict[int, dict[str, Any]] = {}
        taps = [
            layer.mlp.gate.register_forward_hook(
                lambda _, args, out, n=n, seen=seen: seen.__setitem__(
                    n, {"inputs": args[0].detach().reshape(-1, args[0].shape[-1]),
                        "logits": out[0].detach(), "selected": out[2].detach()})
            )
            for n, layer in enumerate(model.model.layers)
        ]  # fmt: skip
        with torch.no_grad():
            model(torch.randint(0, 64, (count, 8), generator=generator))
        for tap in taps:
            tap.remove()
        steps.append(seen)
    folder = tmp_path / "trace"
    write_trace(folder, steps)
    write_trace(folder, steps, rank=1)  # a tensor-parallel twin
    run = of(here, folder, fisher="categorical")
    [checkpoint] = run.checkpoints
    assert (run.probe["sequences"], run.probe["tokens"]) == (2, 40)
    words = " ".join(checkpoint.replay["notes"])
    assert "these routers' own" in words
    assert "2 of 4 ranks' steps repeat" in words
    assert [layer.layer for layer in checkpoint.layers] == [0, 1, 2]
    for n, layer in enumerate(checkpoint.layers):
        chosen = torch.cat([step[n]["selected"] for step in steps]).flatten()
        np.testing.assert_allclose(
            layer.load, torch.bincount(chosen, minlength=6) / len(chosen), atol=1e-9
        )
    file = folder / "router_trace_rank0.jsonl"
    lines = file.read_text().splitlines()
    (folder / "router_trace_rank1.jsonl").unlink()
    for broken, word in (
        ("{", "damaged"),
        (lines[0].replace('"hs_offset": 0', '"hs_offset": 9999999'), "damaged"),
        (lines[0].replace('"topk": 2', '"topk": 3'), "damaged"),
        (lines[0].replace('"hs_offset"', '"other"'), "without the routers' inputs"),
    ):
        file.write_text("\n".join([broken, *lines[1:]]) + "\n")
        with pytest.raises(ProbeError, match=word):
            of(here, folder)
    file.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ProbeError, match="missing in a step"):
        of(here, folder)


def test_the_documented_callback(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from tests.tiny_models import build_tiny

    page = (Path(__file__).parents[2] / "docs" / "how-to" / "own-models.md").read_text()
    [code] = [c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Callback" in c]
    names: dict[str, Any] = {}
    exec(code, names)
    model = build_tiny("mixtral")
    model.set_experts_implementation("eager")
    rows = torch.randint(0, 64, (32, 12), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        tmp_path, max_steps=4, save_steps=2, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, callbacks=[names["CaptureRouters"]()]
    )
    trainer.train()
    here = tmp_path / "checkpoint-2"
    run = of(here, here / "captures.safetensors", fisher="categorical")
    [checkpoint] = run.checkpoints
    assert run.probe["tokens"] == 96
    assert checkpoint.coverage.routers_measured == 3
    assert checkpoint.replay["notes"][0].startswith("router inputs alone, captured at this")
    assert "in training mode" in checkpoint.replay["notes"][1]


def test_captures_are_measured_without_the_model(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the routers' bytes are read, however large the rest is."""
    from transformers import AutoModelForCausalLM

    from moegeo_cli.checkpoints.weights import WeightIndex

    here = tiny("deepseek_v3")
    file = tmp_path / "c.safetensors"
    capture(AutoModelForCausalLM.from_pretrained(here).eval(), sequences(), file)
    read: list[str] = []
    original = WeightIndex.read
    monkeypatch.setattr(WeightIndex, "read", lambda self, n: (read.append(n), original(self, n))[1])
    of(here, file)
    assert read
    assert all("gate.weight" in n or "e_score_correction_bias" in n for n in read), read


def test_captures_measure_what_experts_are_given_and_say_why_nothing_else(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a run of the whole model: the same subspaces; no functions, no loss, no finding."""
    from transformers import AutoModelForCausalLM

    here = tiny("deepseek_v3")
    ids = sequences(24)
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"input_ids": i}) + "\n" for i in ids))
    file = tmp_path / "c.safetensors"
    capture(AutoModelForCausalLM.from_pretrained(here).eval(), ids, file, checkpoint=here)
    whole = experts(here, probe=probe, rank=2, cache=False)
    found = call(capsys, "experts", here, "--captures", file, "--rank", 2, "--verify", 1,
                 "--no-cache", "--format", "json")  # fmt: skip
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, json_report.schema("moegeo.experts", strict=True))
    assert (document["status"], document["loss"]["value"]) == ("partial", None)
    assert "no loss" in document["loss"]["reason"]
    assert any("get the same input as their router" in note for note in document["notes"])
    assert any("--verify was left out" in note for note in document["notes"])
    assert document["merge_candidates"] == []
    [check] = document["checks"]
    assert (check["outcome"], document["findings"]) == ("skipped", [])
    assert len(document["layers"]) == len(whole.layers) == 2
    for layer, known in zip(document["layers"], whole.layers, strict=True):
        for name in ("alignment", "overlap_output", "asymmetry"):
            assert layer["metrics"][name]["value"] is None
            assert "no expert was run" in layer["metrics"][name]["reason"]
        for name in ("overlap_input", "distance_input"):
            a, b = (np.array(m, dtype=float) for m in (layer["matrices"][name],
                                                       known.matrices[name]))  # fmt: skip
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert [e["tokens"] for e in layer["expert"]] == [e.tokens for e in known.expert]


OTHER_INPUT = {"gemma4_text", "llama4_text", "nemotron_h", "zaya"}


def given_alike(model_type: str, folder: Path) -> bool:
    """Whether a type's experts are given what its routers' weights are given."""
    save_tiny(model_type, folder)
    model = oracle.load_whole(folder)
    found = []
    for router in find_routers(model):
        block = find_experts(model, router)
        assert block is not None
        if block.scales_input:
            return False
        if block.input_module is None:  # lists and sorted slots take the router's own
            continue
        seen: dict[str, torch.Tensor] = {}

        def keep(_: Any, args: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["experts"] = args[0].reshape(-1, args[0].shape[-1])

        def take(call: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["router"] = call.x_ND

        handles = [block.input_module.register_forward_pre_hook(keep), RouterTap(router, take)]
        with torch.no_grad():
            model(input_ids=torch.arange(3, 20)[None], use_cache=False)
        for handle in handles:
            handle.remove()
        one, other = seen["experts"], seen["router"]
        found.append(one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3))
    return all(found)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in {*OTHER_INPUT, "deepseek_v4"} else pytest.mark.slow)
     for name in TYPES],
)  # fmt: skip
def test_whose_experts_are_given_something_else_is_known(model_type: str, tmp_path: Path) -> None:
    assert given_alike(model_type, tmp_path) == (model_type not in OTHER_INPUT)
    known = describe_architecture(json.loads((tmp_path / "config.json").read_text()))
    assert (known.expert_input_differs is not None) == (model_type in OTHER_INPUT)


def test_experts_that_are_given_something_else_are_refused(tmp_path: Path) -> None:
    save_tiny("gemma4_text", tmp_path / "m")
    file = tmp_path / "c.safetensors"
    capture(oracle.load_whole(tmp_path / "m"), sequences(), file, checkpoint=tmp_path / "m")
    with pytest.raises(UnsupportedArchitectureError, match="not their router's input"):
        experts(tmp_path / "m", captures=file)
