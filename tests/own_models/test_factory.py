"""Models of a user's own: what is measured is what the model does, or there is a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from torch.nn import functional as F

from moegeo_cli import analyze, compare, inspect, invariance
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    ProbeError,
    ShapeError,
    UnsupportedArchitectureError,
    UsageError,
)
from moegeo_cli.models.factory import OwnFactory
from moegeo_cli.records import LayerRecord, RunRecord
from moegeo_cli.reports import schema
from tests.command import call
from tests.own_models import models

LENGTHS = [7, 12, 12, 5, 9, 12]
ROUTERS = "blocks.*.gate"


@pytest.fixture
def probe(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, models.VOCABULARY, n).tolist() for n in LENGTHS]
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps({"input_ids": i}) + "\n" for i in ids))
    return path, ids


def save(name: str, folder: Path, seed: int = 0) -> torch.nn.Module:
    """A model's plain state dict, as a training script leaves it."""
    model = models.spread(getattr(models, name)(None), seed).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "step": torch.tensor(3)}, folder / "weights.pt")
    return model


def measure(name: str, folder: Path, probe: Path, **more: Any) -> RunRecord:
    scoring = "sigmoid" if name == "sigmoid" else "softmax"
    options = {"router": ROUTERS, "top_k": models.CHOSEN, "scoring": scoring,
               "baseline": "none", "cache": False, **more}  # fmt: skip
    return analyze(folder, probe=probe, model=f"tests.own_models.models:{name}", **options)


def notes(run: RunRecord) -> str:
    return " ".join(run.checkpoints[-1].replay["notes"])


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "dense"])
def test_a_plain_gate_is_measured_as_a_slow_reference_does(
    name: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    model = save(name, tmp_path / "run")
    run = measure(name, tmp_path / "run", probe[0])
    [checkpoint] = run.checkpoints
    assert checkpoint.coverage.routers_found == checkpoint.coverage.routers_measured == 2
    words = notes(run)
    assert "top 2" in words
    assert "not observed" in words
    assert ("reaches these experts and no others" in words) == (name != "dense")
    assert checkpoint.replay["unselected_gradient"] == ("dense" if name == "dense" else "zero")
    losses = []
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {0: [], 1: []}
    for ids in probe[1]:
        calls: list[Any] = []

        def keep(_: Any, args: Any, out: torch.Tensor, calls: list[Any] = calls) -> None:
            out.retain_grad()
            calls.append((args[0][0], out))

        handles = [block.gate.register_forward_hook(keep) for block in model.blocks]
        logits = model(torch.tensor([ids]))[0][0]
        loss = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
        loss.backward()
        losses.append(float(loss.detach()))
        for place, (x, out) in enumerate(calls):
            seen[place].append((x.detach(), torch.cat([out.detach()[0], out.grad[0]], dim=1)))
        for handle in handles:
            handle.remove()
    assert checkpoint.loss.value == pytest.approx(sum(losses) / (sum(LENGTHS) - 6), rel=1e-5)
    for place, layer in enumerate(checkpoint.layers):
        assert layer.layer == place
        x = torch.cat([a for a, _ in seen[place]])
        z, g = torch.cat([b for _, b in seen[place]]).split(models.EXPERTS, dim=1)
        chosen = z.topk(2, dim=1).indices
        load = torch.bincount(chosen.flatten(), minlength=models.EXPERTS) / chosen.numel()
        np.testing.assert_allclose(layer.load, load, atol=1e-7)
        trace = (g.square()[:, :, None] * x.square()[:, None, :]).sum((0, 2)) / len(x)
        measured = [0.0 if own is None else own for own in layer.fisher_trace or ()]
        np.testing.assert_allclose(measured, trace, rtol=1e-3, atol=1e-6 * float(trace.max()))
        unused = (load == 0).tolist() if name != "dense" else [False] * models.EXPERTS
        assert [own is None for own in layer.fisher_trace or ()] == unused


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_a_library_model_by_way_of_a_factory_gives_the_same_numbers(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path,
    probe: tuple[Path, list[list[int]]],
) -> None:  # fmt: skip
    from transformers import AutoModelForCausalLM

    source = tiny(model_type)
    known = analyze(source, probe=probe[0], baseline="none", cache=False, batch_size=1)
    model = AutoModelForCausalLM.from_pretrained(source)
    state = {f"module._orig_mod.{name}": t for name, t in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    scoring = "sigmoid" if model_type == "deepseek_v3" else "softmax"
    own = analyze(tmp_path / "last.ckpt", probe=probe[0], baseline="none", cache=False,
                  model=models.library, scoring=scoring, batch_size=1)  # fmt: skip
    [a], [b] = known.checkpoints, own.checkpoints
    assert a.loss.value == pytest.approx(b.loss.value, rel=1e-6)
    assert notes(own) == "weights: _orig_mod., module. taken off names"  # choices are observed
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.router == other.router
        np.testing.assert_allclose(one.load, other.load, atol=1e-9)
        np.testing.assert_allclose(one.fisher_trace, other.fisher_trace, rtol=1e-4)
        for name in ("fsi", "collapse", "information", "heterogeneity"):
            assert _value(one, name) == pytest.approx(_value(other, name), rel=1e-4)


def _value(layer: LayerRecord, name: str) -> float:
    value = layer.metrics[name].value
    assert value is not None
    return value


def test_a_wrong_k_is_noticed_by_the_gradient(
    tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save("softmax", tmp_path / "run")
    for wrong in (1, 3):
        with pytest.raises(UnsupportedArchitectureError, match=f"top {wrong}") as caught:
            measure("softmax", tmp_path / "run", probe[0], top_k=wrong)
        assert "reaches 2 experts" in (caught.value.found or "")


def test_without_k_or_scoring_nothing_is_guessed(
    tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save("softmax", tmp_path / "run")
    with pytest.raises(UnsupportedArchitectureError, match="scoring") as caught:
        measure("softmax", tmp_path / "run", probe[0], scoring=None)
    assert "--scoring" in (caught.value.hint or "")
    with pytest.raises(UnsupportedArchitectureError, match="cannot read") as caught:
        measure("softmax", tmp_path / "run", probe[0], top_k=None)
    assert "--top-k" in (caught.value.hint or "")


def test_missing_tensors_are_an_error_and_further_ones_a_note(
    tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    model = save("softmax", tmp_path / "run")
    state = dict(model.state_dict())
    file = tmp_path / "run" / "weights.pt"
    torch.save({**state, "ema.decay": torch.ones(1)}, file)
    assert "1 tensors of the files are not the model's: ema.decay" in notes(
        measure("softmax", tmp_path / "run", probe[0])
    )
    torch.save({k: v for k, v in state.items() if k != "blocks.1.gate.weight"}, file)
    with pytest.raises(IncompleteCheckpointError, match="1 tensors") as caught:
        measure("softmax", tmp_path / "run", probe[0])
    assert "blocks.1.gate.weight" in (caught.value.found or "")
    torch.save({**state, "blocks.0.gate.weight": torch.ones(4, 12)}, file)
    with pytest.raises(ShapeError, match=r"blocks\.0\.gate\.weight"):
        measure("softmax", tmp_path / "run", probe[0])


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    from moegeo_cli.errors import UnsafeFileError

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "run").mkdir()
    torch.save({"model": Payload()}, tmp_path / "run" / "weights.pt")
    with pytest.raises(
        UnsafeFileError, match=r"weights\.pt asks for code to run while it loads, and is refused"
    ):
        measure("softmax", tmp_path / "run", probe[0])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [
        ("last_only", UnsupportedArchitectureError, "every position"),
        ("broken", UsageError, "fails to build"),
        ("nothing", UsageError, "no torch.nn.Module"),
        ("absent", UsageError, "cannot be imported"),
        ("VOCABULARY", UsageError, "not callable"),
    ],
)
def test_a_factory_that_does_not_keep_the_contract(
    name: str, kind: type[Exception], word: str, tmp_path: Path,
    probe: tuple[Path, list[list[int]]],
) -> None:  # fmt: skip
    save("softmax", tmp_path / "run")
    with pytest.raises(kind, match=word):
        measure(name, tmp_path / "run", probe[0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"router": "nowhere.*"}, "fits no module"),
        ({"router": "re:(blocks"}, "not a regular expression"),
        ({"top_k": 6}, "impossible"),
        ({"scoring": "hardmax"}, "not known"),
    ],
)
def test_options_that_fit_nothing(
    options: dict[str, Any], word: str, tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save("softmax", tmp_path / "run")
    with pytest.raises(UsageError, match=word):
        measure("softmax", tmp_path / "run", probe[0], **options)


def test_options_of_an_own_model_without_one(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="--top-k needs --model"):
        analyze(tiny("mixtral"), top_k=2)
    with pytest.raises(UsageError, match="PACKAGE"):
        analyze(tiny("mixtral"), model="not a module")


def test_samples_that_influence_each_other_go_one_at_a_time(
    tmp_path: Path, probe: tuple[Path, list[list[int]]]
) -> None:
    save("batched", tmp_path / "run")
    run = measure("batched", tmp_path / "run", probe[0])
    assert "samples are replayed one at a time" in notes(run)
    alone = measure("batched", tmp_path / "run", probe[0], batch_size=1)
    assert run.checkpoints[0].loss == alone.checkpoints[0].loss


def test_patches_before_samples_are_not_misread(tmp_path: Path) -> None:
    save("positions_first", tmp_path / "run")
    generator = np.random.default_rng(1)
    file = tmp_path / "probe.safetensors"
    arrays = {"patches": generator.normal(size=(20, 6, 3)).astype(np.float32),
              "labels": generator.integers(0, 4, 20)}  # fmt: skip
    save_arrays(arrays, file, metadata={"positions": "6"})
    run = measure("positions_first", tmp_path / "run", file, router="block.gate")
    assert "samples are replayed one at a time" in notes(run)
    save_arrays(arrays, file, metadata={"positions": "5"})
    with pytest.raises(ProbeError) as caught:
        measure("positions_first", tmp_path / "run", file, router="block.gate")
    assert "positions = 6" in (caught.value.hint or "")


def test_a_run_of_files_its_baseline_and_its_cache(
    tmp_path: Path, probe: tuple[Path, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step in (0, 20, 100):
        save("softmax", run, step)
        (run / "weights.pt").rename(run / f"model_step{step}.pt")
    torch.save({"state": {}}, run / "optimizer_100.pt")
    (run / "model_step7.pt").write_bytes(b"PK\x03\x04cut")
    options = {"cache": True, "baseline": None}
    first = measure("softmax", run, probe[0], **options)
    assert [c.step for c in first.checkpoints] == [0, 20, 100]
    assert [s["path"] for s in first.run["skipped"]] == ["model_step7.pt"]
    assert first.checkpoints[0].metrics["fhs"].value == pytest.approx(1.0)
    built: list[int] = []
    load = OwnFactory.load
    monkeypatch.setattr(OwnFactory, "load", lambda own: (built.append(1), load(own))[1])
    assert measure("softmax", run, probe[0], **options).checkpoints == first.checkpoints
    assert not built, "a rerun builds no model"
    kept_nothing = measure("softmax", run, probe[0], cache=False, baseline=None)
    assert kept_nothing.dynamics == first.dynamics, "each checkpoint has weights of its own"
    init = measure("softmax", run, probe[0], baseline="init", latest=True)
    assert init.baseline["baseline_draws"] == 8
    same = compare(run, run, probe=probe[0], model="tests.own_models.models:softmax",
                   router=ROUTERS, top_k=2, scoring="softmax", cache=False,
                   baseline="none")  # fmt: skip
    assert same.healthier is None


def test_the_source_of_the_factory_is_part_of_the_key(tmp_path: Path) -> None:
    from moegeo_cli.models.choosing import choose_models

    package = tmp_path / "own_package_for_keys"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("WIDTH = 1\n")
    (package / "model.py").write_text("def build(config): ...\n")
    import sys

    sys.path.append(str(tmp_path))
    try:
        name = "own_package_for_keys.model:build"
        before = choose_models(name).identity
        assert choose_models(name).identity == before
        (package / "parts.py").write_text("WIDTH = 2\n")
        after = choose_models(name).identity
        assert after != before
        assert choose_models(name, top_k=2).identity != after
    finally:
        sys.path.remove(str(tmp_path))


def test_the_command_line_finds_a_module_in_the_current_folder(
    tmp_path: Path, probe: tuple[Path, list[list[int]]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save("softmax", tmp_path / "run")
    (tmp_path / "my_own_models.py").write_text(
        "from tests.own_models.models import softmax as build\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ("--model", "my_own_models:build", "--router", ROUTERS, "--top-k", 2,
           "--scoring", "softmax")  # fmt: skip
    outcome = call(capsys, "analyze", "run", *own, "--probe", probe[0], "--no-cache", "-f", "json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["run"]["model_type"] == "my_own_models:build"
    assert document["run"]["top_k"] == 2
    assert document["checkpoints"][0]["coverage"]["routers_measured"] == 2
    seen = call(capsys, "inspect", "run", *own, "-f", "json").document
    assert seen["routers_found"] == 2
    assert seen["experts"] == models.EXPERTS
    moved = call(capsys, "invariance", "run", *own, "--probe", probe[0], "-f", "json").document
    for name, facts in (("moegeo.inspect", seen), ("moegeo.invariance", moved)):
        jsonschema.validate(facts, schema(name, strict=True))
    found = {entry["name"]: entry["held"] for entry in moved["invariance"]}
    assert found["logit-constant"] is True


def test_the_functions_take_a_callable(tmp_path: Path, probe: tuple[Path, list[list[int]]]) -> None:
    save("sigmoid", tmp_path / "run")
    seen = inspect(tmp_path / "run", model=models.sigmoid, router=ROUTERS)
    assert seen.model_type == "tests.own_models.models:sigmoid"
    entries = invariance(tmp_path / "run", model=models.sigmoid, router=ROUTERS, top_k=2,
                         scoring="sigmoid", probe=probe[0]).invariance  # fmt: skip
    assert {e.name for e in entries if e.applicable} == {"expert-permutation"}
    assert all(e.held for e in entries if e.applicable)
