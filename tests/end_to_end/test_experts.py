"""Experts planted in a checkpoint, and found again through `moegeo experts`."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from threadpoolctl import threadpool_info, threadpool_limits

from moegeo_cli import experts
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.reports import json_report
from moegeo_cli.threads import few_threads
from tests.architectures.test_every_type import TOWERS, TYPES
from tests.architectures.zoo import save_tiny as save_zoo
from tests.end_to_end.conftest import Outcome, random_ids, write_probe
from tests.tiny_models import build_tiny

LENGTHS = [9 + (7 * i) % 29 for i in range(40)]
LAYER, TWIN, COPY = 1, 1, 4


def weights_of(model: Any, model_type: str) -> dict[str, torch.Tensor]:
    """Views of the planted layer's experts, each (E, rows, D) or (E, D, F), by role."""
    module = model.model.layers[LAYER].mlp.experts
    if model_type == "gpt_oss":
        whole = module.gate_up_proj.transpose(1, 2)
        return {
            "gate": whole[:, ::2], "up": whole[:, 1::2], "down": module.down_proj.transpose(1, 2),
            "gate_bias": module.gate_up_proj_bias[:, ::2, None],
            "up_bias": module.gate_up_proj_bias[:, 1::2, None],
        }  # fmt: skip
    half = module.gate_up_proj.shape[1] // 2
    return {
        "gate": module.gate_up_proj[:, :half], "up": module.gate_up_proj[:, half:],
        "down": module.down_proj,
    }  # fmt: skip


def plant(model_type: str, path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """Make one expert another's copy, its neurons permuted and its output changed."""
    model = build_tiny(model_type, 3)
    with torch.no_grad():
        parts = weights_of(model, model_type)
        order = torch.randperm(parts["gate"].shape[1], generator=torch.Generator().manual_seed(0))
        for name, stack in parts.items():
            if name == "down":
                stack[COPY] = change(stack[TWIN][:, order])
            else:
                stack[COPY] = stack[TWIN][order]
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe(tmp_path_factory.mktemp("probe") / "p.jsonl", random_ids(LENGTHS))


def layer_of(document: dict[str, Any], layer: int = LAYER) -> dict[str, Any]:
    return next(x for x in document["layers"] if x["layer"] == layer)


@pytest.mark.parametrize("directions", [None, 4])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_permuted_copy_ranks_first_and_independent_pairs_stay_within_their_null(
    model_type: str, directions: int | None, tmp_path: Path, probe: Path,
    moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    path = plant(model_type, tmp_path / "m", lambda down: 3.0 * down)
    more = [] if directions is None else ["--directions", directions]
    found = moegeo("experts", path, "--probe", probe, "--format", "json", *more)
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, json_report.schema("moegeo.experts", strict=True))
    first = document["merge_candidates"][0]
    assert (first["layer"], first["experts"]) == (LAYER, [TWIN, COPY])
    assert first["alignment"]["value"] > 0.99
    assert first["above_null"]
    others = document["merge_candidates"][1:]
    assert all(c["alignment"]["value"] < 0.5 for c in others)
    assert sum(c["above_null"] for c in others) <= 1
    [finding] = document["findings"]
    assert (finding["name"], finding["layers"]) == ("redundant-experts", [LAYER])
    assert f"{TWIN} + {COPY}" in finding["message"]
    nearest = {e["expert"]: e["nearest"] for e in layer_of(document)["expert"]}
    assert (nearest[TWIN], nearest[COPY]) == (COPY, TWIN)
    assert document["coverage"]["routers_found"] == len(document["layers"])
    assert layer_of(document)["directions"] == (directions or 0)
    load = [e["load"] for e in layer_of(document)["expert"]]
    assert sum(load) == pytest.approx(1)


@pytest.mark.parametrize("degrees", [30, 90, 180])
def test_an_output_turned_by_an_angle_aligns_by_its_cosine(
    degrees: int, tmp_path: Path, probe: Path
) -> None:
    angle = math.radians(degrees)

    def turn(down: torch.Tensor) -> torch.Tensor:
        pairs = down.reshape(-1, 2, down.shape[1])  # every pair of outputs by the angle
        quarter = torch.stack([-pairs[:, 1], pairs[:, 0]], 1).reshape(down.shape)
        return math.cos(angle) * down + math.sin(angle) * quarter

    record = experts(plant("qwen3_moe", tmp_path / "m", turn), probe=probe, layers=str(LAYER))
    [layer] = record.layers
    assert layer.matrices["alignment"][TWIN][COPY] == pytest.approx(math.cos(angle), abs=1e-5)
    mean = layer.matrices["mean_jacobian_alignment"][TWIN][COPY]
    assert mean is not None
    assert abs(mean) <= 1 + 1e-6
    assert record.coverage.not_measured == {
        f"model.layers.{n}.mlp.gate": "left out by --layers" for n in (2,)
    }
    assert record.status == "partial"


def test_pairs_of_random_experts_rarely_stand_above_their_null(tmp_path: Path, probe: Path) -> None:
    above = 0
    for seed in range(4):
        model = build_tiny("mixtral", 20 + seed)
        model.save_pretrained(tmp_path / str(seed))
        record = experts(tmp_path / str(seed), probe=probe, jacobian_tokens=64)
        above += sum(c.above_null for c in record.merge_candidates)
    assert above <= 2  # the limit is of 1% a layer, over 12 layers


def test_twins_cost_nothing_to_merge_and_the_model_is_put_back(tmp_path: Path, probe: Path) -> None:
    path = plant("qwen3_moe", tmp_path / "m", lambda down: down.clone())
    record = experts(path, probe=probe, verify=1)
    found = record.verification
    assert found is not None
    trials = {(t.action, t.choice): t for t in found.trials}
    assert len(trials) == 8
    ranking = trials["merge", "ranking"]
    assert ranking.chosen == (f"layer {LAYER}: {TWIN}+{COPY}",)
    assert ranking.change.value == pytest.approx(0, abs=1e-6)
    assert abs(trials["merge", "random"].change.value or 0) > 1e-4
    assert found.loss.value == pytest.approx(record.loss.value, rel=1e-6)
    again = experts(path, probe=probe, verify=1)
    assert json_report.render(again) == json_report.render(record)


def test_subspaces_are_those_of_the_tokens_that_reach_an_expert(
    tmp_path: Path, probe: Path
) -> None:
    """Against the model itself: a spy on the arguments of its experts, and plain SVDs."""
    path = tmp_path / "m"
    build_tiny("mixtral", 5).save_pretrained(path)
    record = experts(path, probe=probe, rank=3)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(a.detach() for a in args))  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for ids in random_ids(LENGTHS):
            model(input_ids=torch.tensor([ids]))
    x, chosen, weights = (torch.cat(part).double() for part in zip(*seen, strict=True))
    bases = []
    for e in range(6):
        weight = (weights * (chosen == e)).sum(1)
        mine = weight > 0
        assert record.layers[0].expert[e].tokens == int(mine.sum())
        rows, share = x[mine], (weight[mine] / weight[mine].sum())[:, None]
        centred = (rows - (share * rows).sum(0)) * share.sqrt()
        bases.append(torch.linalg.svd(centred, full_matrices=False)[2][:3].T)
    for a in range(6):
        for b in range(6):
            cosines = torch.linalg.svdvals(bases[a].T @ bases[b]).clamp(max=1)
            if a != b:
                found = record.layers[0].matrices["overlap_input"][a][b]
                assert found == pytest.approx(float((cosines**2).mean()), abs=1e-4)
                size = float(cosines.arccos().norm()) / (math.sqrt(3) * math.pi / 2)
                distance = record.layers[0].matrices["distance_input"][a][b]
                assert distance == pytest.approx(size, abs=1e-4)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("deepseek_v4", "llama4_text", "longcat_flash", "zaya")
]


@pytest.mark.parametrize("model_type", ["jetmoe", "nemotron_h", *SLOW])
def test_odd_architectures(model_type: str, tmp_path: Path, probe: Path) -> None:
    save_zoo(model_type, tmp_path)
    record = experts(tmp_path, probe=probe, rank=2)
    json.loads(json_report.render(record))
    assert record.coverage.routers_measured == record.coverage.routers_found
    attention = [x for x in record.layers if "attention" in x.method]
    assert bool(attention) == (model_type == "jetmoe")
    assert record.status == ("partial" if attention else "complete")
    for layer in record.layers:
        assert layer.experts == 8  # those that do work
        alignment = layer.metrics["alignment"]
        assert layer.metrics["overlap_input"].value is not None
        if layer in attention:
            assert alignment.value is None
            assert "other tokens" in (alignment.reason or "")
            continue
        assert "closed form" in layer.method
        assert alignment.value is not None
        assert alignment.ci_low is not None
        assert all(e.singular_values for e in layer.expert if e.tokens)


def test_weights_and_selections(tmp_path: Path, probe: Path) -> None:
    path = tmp_path / "m"
    build_tiny("olmoe", 2).save_pretrained(path)
    found = {
        name: experts(path, probe=probe, layers="0", **options).layers[0]  # type: ignore[arg-type]
        for name, options in {
            "routed": {}, "co": {"tokens": "coselected"}, "all": {"tokens": "all"},
            "soft": {"weights": "soft"}, "share": {"rank": 0.8},
        }.items()
    }  # fmt: skip
    tokens = {n: np.array(x.matrices["alignment_tokens"], dtype=float) for n, x in found.items()}
    assert (tokens["co"] <= tokens["routed"]).all()
    assert (tokens["routed"] <= tokens["all"]).all()
    assert (tokens["all"] == 256).all()
    assert (tokens["routed"] == tokens["routed"].round()).all()
    assert ((tokens["soft"] > 0) & (tokens["soft"] < 256)).all()  # an effective number
    assert (
        found["soft"].metrics["overlap_input"].value
        > found["routed"]
        .metrics[  # type: ignore[operator]
            "overlap_input"
        ]
        .value
    )
    assert found["share"].rank not in (None, 8)


@pytest.fixture(scope="module")
def in_memory(tiny: Callable[..., Path], probe: Path) -> Callable[[str], ExpertsRecord]:
    """What is found of a model held whole, once a type."""
    return functools.cache(lambda kind: experts(tiny(kind, 2), probe=probe, cache=False))


@pytest.mark.parametrize("memory", [None, "chunks"])
@pytest.mark.parametrize("model_type", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_streamed_layers_give_what_the_whole_model_gives(
    model_type: str, memory: str | None, tiny: Callable[..., Path], probe: Path,
    in_memory: Callable[[str], ExpertsRecord], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path, whole = tiny(model_type, 2), in_memory(model_type)
    if memory:  # so tight that a layer's experts come some at a time
        from moegeo_cli.models.streaming.layer_stream import LayerStream

        plain = LayerStream.open
        monkeypatch.setattr(LayerStream, "open", lambda self, size: plain(self, 1))
    found = experts(path, probe=probe, stream=True, verify=1, cache=False)
    assert found.verification is None
    assert any("--verify" in note for note in found.notes)
    for one, other in zip(found.layers, whole.layers, strict=True):
        for name in ("alignment", "overlap_input", "overlap_output", "mean_jacobian_alignment"):
            a, b = (np.array(x.matrices[name], dtype=float) for x in (one, other))
            np.testing.assert_allclose(a, b, atol=2e-4)
        assert one.method == other.method
        # Some at a time, weights of all experts are never side by side.
        assert ("weight_cosine" in one.matrices) == (memory is None)
    assert [c.experts for c in found.merge_candidates] == [
        c.experts for c in whole.merge_candidates
    ]


def test_too_few_tokens_have_no_subspace_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "m"
    build_tiny("mixtral", 1).save_pretrained(path)
    short = write_probe(tmp_path / "p.jsonl", random_ids([6, 9, 7]))
    record = experts(path, probe=short)
    overlap = record.layers[0].metrics["overlap_input"]
    assert (overlap.value, overlap.reason) == (None, "no two experts have enough tokens")
    poor = [e for e in record.layers[0].expert if e.reasons]
    assert poor
    assert all("fewer than 32 (4 a dimension)" in e.reasons[0] for e in poor)
    assert record.layers[0].coexist is None


def test_reports_and_matrices(tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]) -> None:
    path = plant("qwen3_moe", tmp_path / "m", lambda down: down.clone())
    common = ["experts", path, "--probe", probe]
    found = moegeo(*common, "--verify", 1, "--matrices", tmp_path / "e.safetensors", "--full")
    assert found.code == 0, found.err
    for word in ("LAYERS", "MERGE CANDIDATES", "PRUNE CANDIDATES", "VERIFIED", "1 + 4"):
        assert word in found.out
    arrays = load_file(tmp_path / "e.safetensors")
    matrix = arrays["model.layers.1.mlp.gate.alignment"]
    assert matrix[TWIN, COPY] == pytest.approx(1, abs=1e-5)
    out = tmp_path / "report.md"
    found = moegeo(*common, "--format", "markdown", "--output", out,
                   "--matrices", tmp_path / "e.csv")  # fmt: skip
    assert found.code == 0
    assert found.out == ""
    text = out.read_text()
    assert "## Merge candidates" in text
    assert "| layer | alignment |" in text
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    [entry] = [r for r in rows if r["matrix"] == "alignment" and r["layer"] == "1"
               and (r["a"], r["b"]) == ("1", "4")]  # fmt: skip
    assert float(entry["value"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rank", "0"], "--rank"),
        (["--rank", "2.5"], "--rank"),
        (["--directions", "1"], "standard error"),
        (["--matrices", "pairs.txt"], ".safetensors"),
        (["--layers", "9"], "no router was found in layer 9"),
        (["--tokens", "some"], "tokens"),
    ],
)
def test_bad_options_exit_2(
    options: list[str], word: str, tmp_path: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    build_tiny("mixtral", 1).save_pretrained(tmp_path / "m")
    found = moegeo("experts", tmp_path / "m", "--probe", probe, *options)
    assert found.code == 2
    assert word in found.err
    assert found.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*TYPES, *TOWERS])
def test_every_type_is_measured(model_type: str, tmp_path: Path, probe: Path) -> None:
    save_zoo(model_type, tmp_path)
    record = experts(tmp_path, probe=probe, rank=2, jacobian_tokens=16, max_tokens=120)
    assert record.coverage.routers_measured == record.coverage.routers_found
    for layer in record.layers:
        # A norm after the experts mixes their neurons.
        known = "autograd" if model_type == "muse_spark" else "closed form"
        assert known in layer.method or "attention" in layer.method


@pytest.mark.parametrize(("had", "while_it_holds"), [(8, 4), (1, 1)])
def test_small_matrices_take_few_threads_and_never_more_than_allowed(
    had: int, while_it_holds: int
) -> None:
    def threads() -> set[int]:
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    with threadpool_limits(had, "blas"):
        with few_threads(4):
            assert threads() == {while_it_holds}
        assert threads() == {had}
