"""`moegeo routing` against a slow oracle and against checkpoints in which the truth was planted."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from moegeo_cli import routing
from moegeo_cli.commands.routing.record import UNITS, RoutingRecord
from moegeo_cli.reports import json_report
from tests.architectures.test_every_type import PAIRS, TOWERS, TYPES
from tests.architectures.zoo import save_tiny as save_zoo
from tests.end_to_end import routing_oracle as oracle
from tests.end_to_end.conftest import Outcome, random_ids, write_probe
from tests.tiny_models import build_tiny

LENGTHS = [4 + (7 * i) % 11 for i in range(14)]
WIDE = [9 + (7 * i) % 29 for i in range(40)]
KINDS = ("mixtral", "gpt_oss", "deepseek_v3")  # softmax, its top-k alone, sigmoid with a bias


def measure(path: Path, probe: Path | None, *other: Path, **options: Any) -> RoutingRecord:
    return routing(path, *other, probe=probe, cache=False, **options)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    return write_probe(folder / "p.jsonl", random_ids(WIDE), ["a", "b"])


@pytest.mark.parametrize("model_type", KINDS)
def test_every_number_is_that_of_loops_over_tokens(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    ids = random_ids(LENGTHS, 3, 24)
    path, file = tiny(model_type), write_probe(tmp_path / "p.jsonl", ids)
    record = measure(path, file, pairs=10**6)
    kind, tokens = oracle.watch(path, ids)
    assert {layer.router for layer in record.layers} == set(tokens)
    for layer in record.layers:
        rows = tokens[layer.router]
        for name, expected in oracle.metrics(kind, rows, LENGTHS).items():
            metric = layer.metrics[name]
            assert metric.value == pytest.approx(expected, rel=1e-4, abs=1e-5), name
            assert metric.unit == UNITS[name]
        for pairs, within in (("within", True), ("across", False)):
            expected_by = oracle.correlations(kind, rows, within=within)
            found = {(g.hidden, g.usage): g for g in layer.geometry if g.pairs == pairs}
            for key, (spearman, pearson) in expected_by.items():
                assert found[key].spearman.value == pytest.approx(spearman, abs=2e-4), key
                if key[1] == "chosen":  # the oracle's distances are not scaled to 0…1
                    assert found[key].pearson.value == pytest.approx(pearson, abs=2e-4), key
        assert layer.metrics["overlap_unrelated"].null_value == pytest.approx(
            (layer.top_k or 0) / layer.experts
        )


def share(model: Any, strength: float, gain: float) -> None:
    """Give all tokens one direction in common, and all router rows a pattern along it."""
    generator = torch.Generator().manual_seed(1)
    width = model.config.hidden_size
    direction = torch.randn(width, generator=generator)
    direction /= direction.norm()
    with torch.no_grad():
        model.model.embed_tokens.weight += strength * direction
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.self_attn.o_proj.weight *= 0.02  # what is between routers turns it little
            layer.mlp.experts.down_proj *= 0.02
            weight = layer.mlp.gate.weight
            weight -= (weight @ direction)[:, None] * direction
            pattern = torch.randn(len(weight), generator=generator)
            pattern -= pattern.mean()
            weight += gain * (pattern / pattern.norm())[:, None] * direction


@pytest.mark.parametrize(
    ("strength", "gain", "found"),
    [
        (12.0, 0.0, set()),
        (1.5, 2.5, {"shared-direction"}),
        (12.0, 9.0, {"shared-direction", "routing-ignores-input"}),
    ],
)
def test_a_planted_shared_direction_is_found_where_it_is_not_suppressed(
    strength: float, gain: float, found: set[str], tmp_path: Path, probe: Path
) -> None:
    model = build_tiny("mixtral", 2)
    share(model, strength, gain)
    model.save_pretrained(tmp_path)
    record = measure(tmp_path, probe)
    for layer in record.layers:
        energy, response = (layer.metrics[n] for n in ("shared_energy", "response"))
        assert energy.value == pytest.approx(strength**2 / (strength**2 + 1.5), abs=0.08)
        assert response.value == pytest.approx(gain, abs=0.3)
        relative = layer.metrics["response_relative"].value or 0
        assert response.value == pytest.approx(relative * (response.null_value or 0))
    assert {f.name for f in record.findings} == found
    assert [c.name for c in record.checks] == ["shared-direction", "routing-ignores-input"]
    if found:
        advised = {i.id for i in record.interventions}
        assert {"remove-shared-direction", "activate-balance-loss"} & advised
        assert all(f.severity == "info" and f.threshold is not None for f in record.findings)


def test_planted_domains_are_found_and_dealt_ones_are_not(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    ids = [generator.integers(32 * (i % 2), 32 * (i % 2) + 32, n).tolist()
           for i, n in enumerate(WIDE)]  # fmt: skip
    path = tiny("qwen3_moe")
    told = measure(path, write_probe(tmp_path / "a.jsonl", ids, ["low", "high"]))
    for layer in told.layers:
        assert (layer.metrics["domain_gap"].ci_low or 0) > 0.01
        assert (layer.metrics["domain_p_value"].value or 1) <= 0.01
        load = np.array([layer.domain_load[n] for n in ("low", "high")], dtype=float)
        np.testing.assert_allclose(load.sum(1), layer.top_k or 0, rtol=1e-5)
        own = layer.domain_overlap
        assert (own["low"]["low"] or 0) > (own["low"]["high"] or 0) == own["high"]["low"]
        null = layer.metrics["domain_specialization"].null_value or 0.0
        assert (layer.metrics["domain_specialization"].value or 0.0) > 2 * null
    assert [(d.domain, d.sequences) for d in told.domains] == [("high", 20), ("low", 20)]
    assert all((d.within.value or 0) > (d.across.value or 0) for d in told.domains)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    dealt = [json.loads(line) for line in lines]
    for place, row in enumerate(dealt):
        row["domain"] = "xy"[(place // 2) % 2]  # as many of each vocabulary
    file = tmp_path / "b.jsonl"
    file.write_text("\n".join(map(json.dumps, dealt)) + "\n")
    loose = measure(path, file)
    for one, other in zip(told.layers, loose.layers, strict=True):
        size = abs(other.metrics["domain_gap"].value or 0)
        assert size < 0.1 * (one.metrics["domain_gap"].value or 0)
        assert (other.metrics["domain_p_value"].value or 0) > 0.01


def permuted(model: Any, seed: int) -> list[np.ndarray]:
    """Renumber the experts of every layer; the expert that now has each number."""
    from moegeo_cli.commands.invariance.transformations import permute_experts
    from moegeo_cli.routers.finding import find_routers

    routers = find_routers(model)
    before = [r.weight_ED.detach().clone() for r in routers]
    permute_experts(model, routers, "softmax", None, seed)
    return [
        np.array([int((own == row).all(1).nonzero()[0]) for row in r.weight_ED])
        for own, r in zip(before, routers, strict=True)
    ]


def test_kin_are_told_by_weights_and_strangers_compared_without_numbers(
    tmp_path: Path,
) -> None:
    """Every token id occurs once: models of other embeddings have nothing in common."""
    ids = np.random.default_rng(0).permutation(sum(WIDE)).tolist()
    starts = np.cumsum([0, *WIDE])
    sequences = [ids[a:b] for a, b in itertools.pairwise(starts)]
    file = write_probe(tmp_path / "p.jsonl", sequences)
    size = {"vocab_size": len(ids)}
    one = build_tiny("mixtral", 1, **size)
    one.save_pretrained(tmp_path / "one")
    order = permuted(one, 5)
    one.save_pretrained(tmp_path / "renumbered")
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter)
    one.save_pretrained(tmp_path / "tuned")
    build_tiny("mixtral", 2, **size).save_pretrained(tmp_path / "stranger")
    build_tiny("qwen3_moe", 2, **size).save_pretrained(tmp_path / "other")

    same = measure(tmp_path / "one", file, tmp_path / "renumbered").other
    assert same is not None
    assert same.lineage is True
    assert "numbered differently" in same.lineage_reason
    for pair, moved in zip(same.layers, order, strict=True):
        assert pair.metrics["mantel"].value == pytest.approx(1, abs=1e-6)
        assert pair.metrics["overlap_same_token"].value == pytest.approx(1, abs=1e-9)
        assert pair.partner == tuple(np.argsort(moved))
    tuned = measure(tmp_path / "one", file, tmp_path / "tuned").other
    assert tuned is not None
    assert tuned.lineage is True
    for pair in tuned.layers:
        assert (pair.metrics["overlap_same_token"].ci_low or 0) > 0.3
        assert (pair.metrics["mantel"].value or 0) > 0.5
        assert (pair.metrics["expert_match"].value or 0) > 0.95
        assert abs(pair.metrics["expert_match"].null_value or 1) < 0.1
    for name, kin, why in (
        ("stranger", False, "expert numbers do not correspond"),
        ("other", None, "experts could not be matched"),  # of other shapes
    ):
        found = measure(tmp_path / "one", file, tmp_path / name).other
        assert found is not None
        assert found.lineage is kin
        assert len(found.layers) == 3
        for pair in found.layers:
            assert pair.partner is None
            assert why in (pair.metrics["overlap_same_token"].reason or "")
            assert abs(pair.metrics["mantel"].value or 1) < 0.12
        p_values = [pair.metrics["mantel_p_value"].value or 0 for pair in found.layers]
        assert min(p_values) > 0.01


def test_a_run_is_followed_to_its_newest_checkpoint(
    tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    run = tmp_path / "run"
    for step, gain in ((0, 6.0), (10, 2.0), (20, 0.2)):
        model = build_tiny("mixtral", 2)
        share(model, 12.0, gain)
        model.save_pretrained(run / f"checkpoint-{step}")
    file = tmp_path / "found.json"
    found = moegeo("routing", run, "--probe", probe, "--format", "json", "--no-cache", "-o", file)
    assert found.code == 0, found.err
    document = json.loads(file.read_text())
    jsonschema.validate(document, json_report.schema("moegeo.routing", strict=True))
    assert document["step"] == 20
    course = document["trajectory"]
    assert [s["step"] for s in course["steps"]] == [0, 10, 20]
    responses = [s["layers"][0]["metrics"]["response_relative"]["value"] for s in course["steps"]]
    assert responses == sorted(responses, reverse=True)
    last = course["steps"][-1]["layers"][0]["metrics"]
    assert last["saturation"]["value"] == pytest.approx(1)
    own = document["layers"][0]["metrics"]
    for name in ("shared_energy", "response", "constant_share", "collapse", "overlap_unrelated"):
        assert last[name] == own[name]
    change = course["changes"][0]["metrics"]["response_relative"]
    assert change["value"] == pytest.approx(responses[-1] - responses[0])
    assert change["ci_high"] < 0
    assert course["metrics"]["response_with_step"]["value"] == pytest.approx(-1)
    alone = measure(run / "checkpoint-0", probe)
    assert alone.trajectory is None
    first = course["steps"][0]
    assert first["fingerprint"] == alone.fingerprint
    expected = alone.layers[1].metrics["response"].value
    assert first["layers"][1]["metrics"]["response"]["value"] == pytest.approx(expected)
    part = measure(run, probe, steps="10-20")
    assert part.trajectory is not None
    assert [s.step for s in part.trajectory.steps] == [10, 20]
    assert measure(run, probe, latest=True, max_tokens=100).trajectory is None
    assert "OVER TRAINING" in moegeo("report", file, "--full").out


def test_prompts_are_continued_by_the_model_itself(tiny: Callable[..., Path], probe: Path) -> None:
    path = tiny("qwen3_moe")
    record = measure(path, probe, generate=5)
    again = measure(path, probe, generate=5)
    assert json_report.render(record) == json_report.render(again)
    assert record.settings["prompts"] == 40
    assert record.settings["prompt_tokens"] == sum((n + 1) // 2 for n in WIDE)
    for layer in record.layers:
        for name in ("overlap", "same_domain", "correlation", "p_value"):
            metric = layer.metrics[f"generated_{name}"]
            assert metric.value is not None
            assert metric.unit == UNITS[f"generated_{name}"]
        assert layer.metrics["generated_overlap"].n == 40
    plain = measure(path, probe)
    assert not any(name.startswith("generated") for name in plain.layers[0].metrics)


@pytest.mark.parametrize(
    "model_type", ["deepseek_v3", pytest.param("mixtral", marks=pytest.mark.slow)]
)
def test_streamed_layers_give_what_the_whole_model_gives(
    model_type: str, tiny: Callable[..., Path], probe: Path
) -> None:
    path = tiny(model_type)
    whole = measure(path, probe, path)
    found = measure(path, probe, path, stream=True, generate=4)
    assert any("layers streamed" in note for note in found.notes)
    assert any("--generate needs the whole model" in note for note in found.notes)
    for one, other in zip(whole.layers, found.layers, strict=True):
        for name, metric in one.metrics.items():
            assert other.metrics[name].value == pytest.approx(metric.value, abs=1e-6), name
    assert found.other is not None
    assert found.other.lineage is True
    bound = measure(path, probe, memory="4GB", layers="1")
    assert bound.status == "partial"
    assert [layer.layer for layer in bound.layers] == [1]


def test_too_little_and_one_sequence_are_null_with_reasons(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    path = tiny("mixtral")
    record = measure(path, write_probe(tmp_path / "p.jsonl", random_ids([6])))
    json.loads(json_report.render(record))
    metrics = record.layers[0].metrics
    assert metrics["overlap_unrelated"].reason == "no two tokens make such a pair"
    assert "fewer than 8 sequences" in (metrics["rollout_overlap"].reason or "")
    assert "fewer than two domains" in (metrics["domain_gap"].reason or "")
    assert metrics["shared_energy"].value is not None
    assert metrics["shared_energy"].ci_low is None
    across = [g for g in record.layers[0].geometry if g.pairs == "across"]
    assert all("0 pairs" in (g.spearman.reason or "") for g in across)
    short = write_probe(tmp_path / "q.jsonl", [[1], [2], [3]] * 8)
    json.loads(json_report.render(measure(path, short, generate=2)))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("jetmoe", "llama4_text")]


@pytest.mark.parametrize("model_type", ["deepseek_v4", "nemotron_h", *SLOW])
def test_odd_architectures(model_type: str, tmp_path: Path, probe: Path) -> None:
    save_zoo(model_type, tmp_path)
    record = measure(tmp_path, probe, generate=2)
    document = json.loads(json_report.render(record))
    jsonschema.validate(document, json_report.schema("moegeo.routing", strict=True))
    assert record.coverage.routers_measured == record.coverage.routers_found
    hashed = [x for x in record.layers if "(hash)" in (x.metrics["response"].reason or "")]
    assert bool(hashed) == (model_type == "deepseek_v4")
    for layer in record.layers:
        assert layer.metrics["overlap_sequence"].value is not None
        assert layer.metrics["generated_overlap"].value is not None
        kinds = {(g.hidden, g.usage) for g in layer.geometry}
        assert kinds == ({("cosine", "chosen")} if layer in hashed else kinds)
        assert ("visible", "distribution") in kinds or layer in hashed


def test_an_encoder_and_its_decoder_have_their_own_rows(tmp_path: Path, probe: Path) -> None:
    save_zoo("switch_transformers", tmp_path)
    record = measure(tmp_path, probe, tmp_path, generate=2)
    assert record.coverage.routers_measured == record.coverage.routers_found == 4
    sides = {x.router.split(".")[0]: x.metrics["constant_share"].n for x in record.layers}
    assert sides["encoder"] == sum((n + 1) // 2 for n in WIDE)
    assert sides["decoder"] == sum(n // 2 for n in WIDE)
    assert any("a prompt and its continuation share no router" in n for n in record.notes)
    for layer in record.layers:
        assert layer.metrics["rollout_overlap"].value is not None
        assert layer.metrics["coactivation_excess"].reason == "no token chooses two experts"
        assert layer.matrices == {}
    assert record.other is not None
    assert record.other.lineage is True
    assert all(p.metrics["overlap_same_token"].value == 1 for p in record.other.layers)


def test_experts_without_weights_keep_their_numbers(tmp_path: Path, probe: Path) -> None:
    save_zoo("longcat_flash", tmp_path)  # 8 experts, and 2 that give back what they are given
    other = measure(tmp_path, probe, tmp_path, max_tokens=400).other
    assert other is not None
    for pair in other.layers:
        assert pair.partner == tuple(range(8))
        assert pair.metrics["overlap_same_token"].value == pytest.approx(1)


def test_reports_and_matrices(
    tiny: Callable[..., Path], tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    path = tiny("qwen3_moe")
    common = ["routing", path, path, "--probe", probe, "--cache-dir", tmp_path / "store"]
    found = moegeo(*common, "--matrices", tmp_path / "m.safetensors", "--full")
    assert found.code == 0, found.err
    for word in ("AT A GLANCE", "GEOMETRY AND USAGE", "SHARED DIRECTION", "EXPERTS IN COMMON",
                 "SPECIALISATION", "FIRST PART", "DOMAINS", "COMPARED WITH"):  # fmt: skip
        assert word in found.out
    arrays = load_file(tmp_path / "m.safetensors")
    matrix = arrays["model.layers.1.mlp.gate.coactivation"]
    assert np.isnan(matrix.diagonal()).all()
    # Of K = 3 experts a token has two beside each of its own.
    np.testing.assert_allclose(np.nansum(matrix, axis=1), 2.0, rtol=1e-5)
    out = tmp_path / "report.md"
    found = moegeo(*common, "--format", "markdown", "--output", out,
                   "--matrices", tmp_path / "m.csv")  # fmt: skip
    assert (found.code, found.out) == (0, "")
    text = out.read_text()
    assert "## Geometry and usage" in text
    assert "| layer | same sequence |" in text
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    entries = {(r["a"], r["b"]): float(r["value"]) for r in rows
               if r["matrix"] == "coactivation" and r["layer"] == "1"}  # fmt: skip
    assert entries["1", "4"] == pytest.approx(matrix[1, 4], abs=1e-6)
    assert entries["4", "1"] == pytest.approx(matrix[4, 1], abs=1e-6)
    text = moegeo(*common, "--format", "json").out
    assert json_report.render(json_report.read(text, RoutingRecord)) == text


def test_a_run_knows_what_its_routing_was_found_to_ignore(
    tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    """Measured by this command, judged by `analyze`, without a model."""
    model = build_tiny("mixtral", 2)
    share(model, 12.0, 9.0)
    model.save_pretrained(tmp_path / "checkpoint-5")
    analyze = ("analyze", tmp_path, "--probe", probe, "--format", "json")
    names = {"shared-direction", "routing-ignores-input"}
    before = moegeo(*analyze).document["verdict"]
    assert {c["name"]: c["outcome"] for c in before["checks"] if c["name"] in names} == (
        dict.fromkeys(names, "skipped")
    )
    assert moegeo("routing", tmp_path, "--probe", probe).code == 0
    document = moegeo(*analyze).document
    listed = {f["name"]: f for f in document["verdict"]["findings"]}
    assert names <= listed.keys()
    assert all("by `moegeo routing`" in listed[n]["message"] for n in names)
    assert all(listed[n]["severity"] == "info" for n in names)
    (tmp_path / "moegeo.toml").write_text("[thresholds]\nshared-direction-share = 1.0\n")
    shutil.rmtree(tmp_path / ".moegeo", ignore_errors=True)
    missing = moegeo(*analyze).document["verdict"]
    assert not names & {f["name"] for f in missing["findings"]}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--pairs", "3"], "16"),
        (["--generate", "-1"], "0"),
        (["--matrices", "pairs.txt"], ".safetensors"),
        (["--layers", "9"], "no router was found in layer 9"),
        (["--steps", "7"], "no checkpoint has one of these steps"),
        (["--router", "a.b"], "--router needs --model"),
        (["--framework", "mine"], "no framework"),
        (["--memory", "much"], "not a size"),
    ],
)
def test_bad_options_exit_2(
    options: list[str], word: str, tiny: Callable[..., Path], probe: Path,
    moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    found = moegeo("routing", tiny("mixtral"), "--probe", probe, *options)
    assert found.code == 2
    assert word in found.err
    assert found.out == ""


def test_models_that_read_other_tokens_are_refused(
    tiny: Callable[..., Path], tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    save_zoo("switch_transformers", tmp_path / "pairs")
    file = write_probe(tmp_path / "p.jsonl", random_ids(LENGTHS))
    found = moegeo("routing", tiny("mixtral"), tmp_path / "pairs", "--probe", file)
    assert found.code == 2
    assert "read the probe as different tokens" in found.err


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*TYPES, *TOWERS, *PAIRS])
def test_every_type_is_measured(model_type: str, tmp_path: Path, probe: Path) -> None:
    save_zoo(model_type, tmp_path)
    record = measure(tmp_path, probe, tmp_path, max_tokens=400, generate=2)
    jsonschema.validate(
        json.loads(json_report.render(record)), json_report.schema("moegeo.routing", strict=True)
    )
    assert record.coverage.routers_measured == record.coverage.routers_found
    assert record.other is not None
    assert record.other.lineage is True, record.other.lineage_reason
    pairs = model_type in PAIRS
    for layer in record.layers:
        assert layer.metrics["overlap_unrelated"].value is not None
        assert (layer.metrics.get("generated_overlap") is None) == pairs
