"""Experts of an encoder with its decoder: each side's on its own tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from moegeo_cli import experts
from moegeo_cli.commands.experts import report
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.records import from_dict
from moegeo_cli.reports import json_report
from tests.architectures import oracle
from tests.architectures.test_encoder_decoder import call, watch
from tests.architectures.zoo import save_tiny
from tests.end_to_end.conftest import Outcome, random_ids, write_probe

LENGTHS = [9 + (7 * i) % 29 for i in range(40)]
TWIN, COPY = 1, 4
BLOCKS = {"encoder": "encoder.block.1.layer.1.mlp", "decoder": "decoder.block.1.layer.2.mlp"}


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[list[int], int]]]:
    ids = random_ids(LENGTHS)
    path = write_probe(tmp_path_factory.mktemp("probe") / "p.jsonl", ids)
    return path, [(sequence, (len(sequence) + 1) // 2) for sequence in ids]


def plant(path: Path, side: str) -> None:
    """Make one expert of a side another's copy, its neurons permuted."""
    save_tiny("switch_transformers", path)
    model = oracle.load_whole(path)
    module = model.get_submodule(BLOCKS[side]).experts
    one, other = module[f"expert_{TWIN}"], module[f"expert_{COPY}"]
    order = torch.randperm(len(one.wi.weight), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.wi.weight.copy_(one.wi.weight[order])
        other.wo.weight.copy_(one.wo.weight[:, order])
    model.save_pretrained(path)


@pytest.mark.parametrize("side", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_permuted_copy_of_a_side_ranks_first_and_reaches_the_verdict(
    side: str, tmp_path: Path, probe: tuple[Path, Any], moegeo: Callable[..., Outcome]
) -> None:
    plant(tmp_path / "m", side)
    found = moegeo("experts", tmp_path / "m", "--probe", probe[0], "--rank", 2, "--verify", 1,
                   "--format", "json")  # fmt: skip
    assert found.code == 0, found.err
    document = found.document
    jsonschema.validate(document, json_report.schema("moegeo.experts", strict=True))
    assert document["status"] == "complete"
    first, *others = document["merge_candidates"]
    assert (first["router"], first["experts"]) == (f"{BLOCKS[side]}.router", [TWIN, COPY])
    assert first["alignment"]["value"] > 0.99
    assert all(c["alignment"]["value"] < 0.5 for c in others)
    assert sum(c["above_null"] for c in others) <= 1
    ranking = document["verification"]["trials"][0]
    assert ranking["chosen"] == [f"layer 1 {side}: {TWIN}+{COPY}"]
    assert ranking["change"]["value"] == pytest.approx(0, abs=1e-6)
    run = moegeo("analyze", tmp_path / "m", "--probe", probe[0], "--format", "json").document
    [finding] = [f for f in run["verdict"]["findings"] if f["name"] == "redundant-experts"]
    assert f"layer 1 {side}: {TWIN} + {COPY}" in finding["message"]
    assert finding["evidence"][0]["router"] == f"{BLOCKS[side]}.router"
    shown = report.render(from_dict(ExpertsRecord, document))
    assert f"layer 1 {side}: {TWIN} + {COPY}" in shown


def test_each_side_is_measured_at_its_own_tokens(tmp_path: Path, probe: tuple[Path, Any]) -> None:
    """Against the model itself, one sequence at a time: counts, weights, and plain SVDs."""
    path, pairs = probe
    save_tiny("switch_transformers", tmp_path)
    record = experts(tmp_path, probe=path, rank=2, cache=False)
    model = oracle.load_whole(tmp_path)
    counts = watch(model, pairs)
    seen: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, own=name: seen.setdefault(own, []).append([a.detach() for a in args])
        )
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        for ids, split in pairs:
            call(model, ids, split)
    for handle in handles:
        handle.remove()
    assert {layer.router for layer in record.layers} == set(counts)
    assert any("source" in note for note in record.notes)
    for layer in record.layers:
        tokens = [e.tokens for e in layer.expert]
        assert tokens == counts[layer.router][0].tolist()
        assert sum(e.load or 0 for e in layer.expert) == pytest.approx(1)
        calls = seen[layer.router.replace(".router", ".experts")]
        x, chosen, weights = (torch.cat(part).double() for part in zip(*calls, strict=True))
        mix = chosen[:, 0] * weights  # zeros beyond an expert's capacity
        mass = mix.sum(0) / mix.sum()
        np.testing.assert_allclose([e.mass for e in layer.expert], mass, atol=1e-6)
        bases: list[Any] = []
        for e in range(8):
            mine = mix[:, e] > 0
            if mine.sum() < 8:
                assert "fewer than 8" in layer.expert[e].reasons[0]
                bases.append(None)
                continue
            share = (mix[mine, e] / mix[mine, e].sum())[:, None]
            centred = (x[mine] - (share * x[mine]).sum(0)) * share.sqrt()
            bases.append(torch.linalg.svd(centred, full_matrices=False)[2][:2].T)
        for a in range(8):
            for b in range(a):
                found = layer.matrices["overlap_input"][a][b]
                if bases[a] is None or bases[b] is None:
                    assert found is None
                    continue
                cosines = torch.linalg.svdvals(bases[a].T @ bases[b]).clamp(max=1)
                assert found == pytest.approx(float((cosines**2).mean()), abs=1e-4)


@pytest.mark.slow
def test_streamed_it_gives_the_same(tmp_path: Path, probe: tuple[Path, Any]) -> None:
    save_tiny("switch_transformers", tmp_path)
    whole = experts(tmp_path, probe=probe[0], rank=2, cache=False)
    found = experts(tmp_path, probe=probe[0], rank=2, cache=False, stream=True)
    for one, other in zip(found.layers, whole.layers, strict=True):
        assert one.router == other.router
        for name in ("alignment", "overlap_input", "overlap_output"):
            a, b = (np.array(x.matrices[name], dtype=float) for x in (one, other))
            np.testing.assert_allclose(a, b, atol=2e-4)
