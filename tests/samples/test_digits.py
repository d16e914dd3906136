"""The shipped vision run: real images, really trained, measured through the factory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from moegeo_cli import analyze
from moegeo_cli.errors import ProbeError
from moegeo_cli.records import RunRecord
from sample_checkpoints.digits import CONFIG, HELD_OUT, build, load_images, write_probe
from tests.command import call

RUN = Path(__file__).parents[2] / "sample_checkpoints" / "digits-moe"
PROBE = RUN / "probe.safetensors"
OWN = ("--model", "sample_checkpoints.digits:build", "--router", "blocks.*.mixture.router")
STEPS = [0, 200, 600]


def measure(probe: Path, **options: object) -> RunRecord:
    return analyze(RUN / "checkpoint-600", probe=probe, model=build, baseline="none", cache=False,
                   router="blocks.*.mixture.router", **options)  # fmt: skip


def test_files_are_small_and_what_an_analysis_reads() -> None:
    files = [p for p in RUN.rglob("*") if p.is_file() and ".moegeo" not in p.parts]
    assert sum(p.stat().st_size for p in files) < 300_000
    assert {p.name for p in files} == {"config.json", "model.safetensors", "probe.safetensors"}
    for step in STEPS:
        assert json.loads((RUN / f"checkpoint-{step}" / "config.json").read_text()) == CONFIG


def test_the_last_checkpoint_knows_the_held_out_digits() -> None:
    tensors = load_file(PROBE)
    accuracy = []
    for step in STEPS:
        model = build(CONFIG)
        model.load_state_dict(load_file(RUN / f"checkpoint-{step}" / "model.safetensors"))
        with torch.no_grad():
            right = model(tensors["pixel_values"].float()).argmax(-1) == tensors["labels"]
        accuracy.append(float(right.float().mean()))
    assert accuracy[0] < 0.2
    assert accuracy[-1] > 0.93


def test_the_probe_holds_scikit_learns_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    images, digits = load_images()
    write_probe(tmp_path / "probe.safetensors", images[:HELD_OUT], digits[:HELD_OUT])
    with safe_open(PROBE, "np") as ours, safe_open(tmp_path / "probe.safetensors", "np") as again:
        assert ours.metadata() == again.metadata()
    for name, tensor in load_arrays(tmp_path / "probe.safetensors").items():
        np.testing.assert_array_equal(tensor, load_arrays(PROBE)[name])


def test_the_run_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RUN.parents[1])
    outcome = call(capsys, "analyze", "sample_checkpoints/digits-moe", *OWN, "--probe", PROBE,
                   "--cache-dir", tmp_path, "--format", "json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert [c["step"] for c in document["checkpoints"]] == STEPS
    assert document["probe"]["sequences"] == document["probe"]["loss_tokens"] == HELD_OUT
    assert document["probe"]["tokens"] == HELD_OUT * 16
    assert len(document["probe"]["domains"]) == 10
    assert document["verdict"]["routing"] == "healthy"
    last = document["checkpoints"][-1]
    assert last["coverage"] == {"routers_found": 2, "routers_measured": 2, "not_measured": {}}
    assert last["metrics"]["fhs"]["value"] > 0
    assert last["layers"][0]["metrics"]["fsi"]["n"] == HELD_OUT * 16
    assert "reaches these experts and no others" in " ".join(last["replay"]["notes"])
    again = call(capsys, "analyze", "sample_checkpoints/digits-moe", *OWN, "--probe", PROBE,
                 "--cache-dir", tmp_path, "--format", "json")  # fmt: skip
    assert again.out == outcome.out


@pytest.mark.parametrize("unit", ["position", "sequence", "loss_token"])
def test_loss_and_fisher_of_images_against_autograd(unit: str, tmp_path: Path) -> None:
    tensors = {name: tensor[:24].clone() for name, tensor in load_file(PROBE).items()}
    tensors["labels"][3] = -100
    probe = tmp_path / "few.safetensors"
    save_file(tensors, probe, metadata={"positions": "16"})
    [checkpoint] = measure(probe, unit=unit, batch_size=5).checkpoints
    model = build(CONFIG)
    model.load_state_dict(load_file(RUN / "checkpoint-600" / "model.safetensors"))
    losses, sums = [], [torch.zeros(8), torch.zeros(8)]
    for place in range(24):
        calls: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(_: object, args: object, out: torch.Tensor, calls: list = calls) -> None:
            out.retain_grad()
            calls.append((args[0].detach(), out))

        handles = [b.mixture.router.register_forward_hook(keep) for b in model.blocks]
        logits = model(tensors["pixel_values"][place : place + 1].float())
        loss = F.cross_entropy(logits, tensors["labels"][place : place + 1], reduction="sum")
        for handle in handles:
            handle.remove()
        if int(tensors["labels"][place]) == -100:
            continue
        loss.backward()
        losses.append(float(loss.detach()))
        for layer, (x, z) in enumerate(calls):
            position = z.grad.square().T @ x.square()
            image = (z.grad.T @ x).square()  # one loss an image: both other units are the same
            sums[layer] += (position if unit == "position" else image).sum(1)
    assert checkpoint.loss.value == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert checkpoint.loss.n == 23
    for layer, trace in zip(checkpoint.layers, sums, strict=True):
        wanted = trace / (24 * 16)
        np.testing.assert_allclose(layer.fisher_trace, wanted, rtol=2e-3,
                                   atol=1e-5 * float(wanted.max()))  # fmt: skip


def test_images_without_labels_have_no_loss_and_everything_else(tmp_path: Path) -> None:
    images = load_file(PROBE)["pixel_values"][:40].clone()
    probe = tmp_path / "bare.safetensors"
    save_file({"pixel_values": images}, probe, metadata={"positions": "16"})
    [checkpoint] = measure(probe).checkpoints
    assert checkpoint.loss.value is None
    assert "no loss token" in (checkpoint.loss.reason or "")
    assert checkpoint.metrics["heterogeneity"].value is None
    assert checkpoint.fisher["categorical"]["token"]["heterogeneity"].value is not None
    assert checkpoint.metrics["fsi"].value is not None


@pytest.mark.parametrize(
    ("change", "metadata", "word"),
    [
        ({}, {"positions": "4"}, "sees [0-9,]+ tokens of a batch"),
        ({}, {"positions": "0"}, "positions"),
        ({}, {"positions": "many"}, "positions"),
        ({"labels": torch.full((360,), 10)}, {"positions": "16"}, "do not fit"),
        ({"labels": torch.zeros(360, 2, dtype=torch.long)}, {"positions": "16"}, "do not fit"),
        ({"labels": torch.zeros(359, dtype=torch.long)}, {"positions": "16"}, "agree"),
        ({"labels": torch.zeros(360)}, {"positions": "16"}, "not integers"),
        ({"pixel_values": torch.full((360, 1, 8, 8), torch.nan)}, {}, "NaN"),
        ({"domains": torch.full((360,), 9)}, {"domains": '["a"]'}, "domains"),
    ],
)
def test_probes_of_images_that_do_not_fit(
    change: dict[str, torch.Tensor], metadata: dict[str, str], word: str, tmp_path: Path
) -> None:
    probe = tmp_path / "probe.safetensors"
    save_file({**load_file(PROBE), **change}, probe, metadata=metadata)
    with pytest.raises(ProbeError, match=word):
        measure(probe)


def test_a_language_model_refuses_images(tiny: object) -> None:
    with pytest.raises(ProbeError, match="other inputs than token ids") as caught:
        analyze(tiny("mixtral"), probe=PROBE)
    assert "--model" in (caught.value.hint or "")
