"""Adapters as peft writes them: moegeo's numbers are those of peft's own merged model."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.auto import auto_factory

from moegeo_cli import analyze, check, compare, inspect
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.commands.inspect.report import print_inspection
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    PathError,
    ShapeError,
    UnsafeFileError,
    UnsupportedLayoutError,
)
from moegeo_cli.models.loading import load_model
from moegeo_cli.records import RunRecord
from tests.adapters.files import ATTENTION, EXPERTS, ROUTERS, Written, beside, edit, run_of, write
from tests.tiny_models import save_tiny

KINDS = {"attention": ATTENTION, "routers": ROUTERS, "experts": EXPERTS}
FAST = [("qwen3_moe", "routers"), ("mixtral", "experts"), ("gpt_oss", "experts"),
        ("deepseek_v3", "attention")]  # fmt: skip
GRID = [(t, k) for t in ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "granitemoe", "olmoe")
        for k in KINDS]  # fmt: skip
Writer = Callable[..., Written]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """The files of a model type and kind, written once."""
    made: dict[str, Written] = {}

    def get(model_type: str, kind: str) -> Written:
        name = f"{model_type}-{kind}"
        if name not in made:
            made[name] = write(tmp_path_factory.mktemp(name), model_type, **KINDS[kind])
        return made[name]

    return get


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    rows = torch.randint(0, 64, (4, 20), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def measure(path: Path, probe: Path, **options: Any) -> Any:
    options = {"baseline": "none", "cache": False, "dtype": "float32", **options}
    return analyze(path, probe=probe, **options)


def numbers(checkpoint: Any) -> list[float]:
    """Loss, and what the routers' logits make: FSI, dispersion and Fisher of every router."""
    found = [checkpoint.loss.value]
    for layer in checkpoint.layers:
        found += [layer.metrics[name].value for name in sorted(layer.metrics)]
    return [float("nan") if value is None else value for value in found]


def assert_same(path: Path, reference: Path, probe: Path, **options: Any) -> None:
    want = numbers(measure(reference, probe).checkpoints[-1])
    for checkpoint in measure(path, probe, **options).checkpoints[-1:]:
        assert numbers(checkpoint) == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    FAST + [pytest.param(*c, marks=pytest.mark.slow) for c in GRID if c not in FAST],
)
def test_an_adapter_alone_and_beside_weights_is_its_merged_model(
    model_type: str, kind: str, written: Writer, probe: Path, tmp_path: Path
) -> None:
    files = written(model_type, kind)
    want = numbers(measure(files.merged, probe).checkpoints[0])
    plain = numbers(measure(files.base, probe).checkpoints[0])
    assert abs(plain[0] - want[0]) > 1e-4  # the adapter changes the model
    for path, stream in ((files.adapter, False), (beside(files, tmp_path / "both"), True)):
        (checkpoint,) = measure(path, probe, stream=stream).checkpoints
        assert numbers(checkpoint) == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)
        assert "LoRA adapter of rank 4" in checkpoint.replay["weights"]["adapter"]["merged"]
        (note,) = [note for note in checkpoint.replay["notes"] if "LoRA adapter" in note]
        assert ("routers stay as they are" in note) is (kind != "routers")
        assert (" move by " in note) is (kind != "attention")


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_of_adapters(stream: bool, written: Writer, probe: Path, tmp_path: Path) -> None:
    """After the base model itself, and of two base models: each checkpoint has its own."""
    files = written("qwen3_moe", "experts")
    base = save_tiny("qwen3_moe", tmp_path / "other-base", 3)
    other = write(tmp_path / "other", "qwen3_moe", seed=5, base=base, **ROUTERS)
    run = run_of([files.base, other.adapter, files.adapter], tmp_path / "run")
    found = measure(run, probe, stream=stream).checkpoints
    assert [checkpoint.step for checkpoint in found] == [10, 20, 30]
    for checkpoint, whole in zip(found, (files.base, other.merged, files.merged), strict=True):
        want = numbers(measure(whole, probe).checkpoints[0])
        assert numbers(checkpoint) == pytest.approx(want, rel=1e-5, abs=1e-6, nan_ok=True)


def test_a_run_of_adapters_is_held_against_its_base_model(
    written: Writer, probe: Path, tmp_path: Path
) -> None:
    """FHS begins there, and `compare` takes the base model as it is."""
    files = written("qwen3_moe", "experts")
    base = save_tiny("qwen3_moe", tmp_path / "base", 3)
    tuned = [write(tmp_path / f"{n}", "qwen3_moe", seed=n, base=base, **ROUTERS) for n in (5, 6)]
    run = run_of([w.adapter for w in tuned], tmp_path / "run")
    options: Any = {"probe": probe, "cache": False}
    found, by_hand = analyze(run, **options), analyze(run, **options, baseline=str(base))
    assert isinstance(found, RunRecord)
    assert isinstance(by_hand, RunRecord)
    assert numbers(found.newest) == pytest.approx(numbers(by_hand.newest), nan_ok=True)
    assert found.newest.metrics["fhs"].value is not None
    beside = compare(base, run, **options)
    assert beside.matched_by == "newest"
    [pair] = beside.pairs
    assert (pair.step_a, pair.step_b, pair.progress_a) == (None, 20, None)
    merged = compare(base, tuned[1].merged, **options).pairs[0]
    assert pair.differences["loss"].b.value == pytest.approx(merged.differences["loss"].b.value)
    shared = pair.shared
    assert shared is not None
    assert (shared.routers, shared.experts) == (0, shared.experts_of)
    alone = analyze(files.adapter, **options)
    assert isinstance(alone, RunRecord)
    assert alone.newest.metrics["fhs"].value is None


PROGRAM = """
import sys
from pathlib import Path
sys.modules["peft"] = None
import torch
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.models.loading import load_model
model = load_model(Checkpoint(Path(sys.argv[1])), torch.device("cpu"), torch.float32)
print(*model(input_ids=torch.arange(20)[None]).logits[0, -1].tolist())
"""


@pytest.mark.slow
def test_numbers_are_the_same_without_peft(written: Writer, tmp_path: Path) -> None:
    files = written("qwen3_moe", "routers")
    path = beside(files, tmp_path / "both")
    done = subprocess.run(  # whether peft is there is asked once a process
        [sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True
    )
    without = [float(value) for value in done.stdout.split()]
    for folder in (path, files.merged):
        model: Any = load_model(Checkpoint(folder), torch.device("cpu"), torch.float32)
        found = model(input_ids=torch.arange(20)[None]).logits[0, -1].tolist()
        assert without == pytest.approx(found, rel=1e-5, abs=1e-6)


def test_transformers_never_looks_for_an_adapter(
    written: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft installed it would apply one itself, wherever it loads from a folder."""
    files = written("qwen3_moe", "routers")
    both = beside(files, tmp_path / "both")
    left = beside(files, tmp_path / "left")
    (left / "adapter_model.safetensors").unlink()
    cpu, seen = torch.device("cpu"), []
    find = auto_factory.find_adapter_config_file

    def record(path: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(path)
        return find(path, *arguments, **options)

    monkeypatch.setattr(auto_factory, "find_adapter_config_file", record)
    load_model(Checkpoint(files.base), cpu, torch.float32)
    assert seen == [files.base]  # where it would look
    monkeypatch.setattr(PreTrainedModel, "load_adapter", pytest.fail)
    for path in (both, left):
        load_model(Checkpoint(path), cpu, torch.float32)
    assert seen == [files.base]


def test_what_is_left_of_an_adapter_is_not_transformers_to_read(
    written: Writer, probe: Path, tmp_path: Path
) -> None:
    files = written("qwen3_moe", "routers")
    path = beside(files, tmp_path / "both")
    (path / "adapter_model.safetensors").unlink()
    assert_same(path, files.base, probe)


# -- where the base model is


def test_the_base_model_by_a_path_from_elsewhere(
    written: Writer, probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written("qwen3_moe", "routers")
    shutil.copytree(files.adapter, tmp_path / "runs" / "adapter")
    adapter = tmp_path / "runs" / "adapter"
    edit(adapter, base_model_name_or_path="models/base")
    for place in (adapter, adapter.parent, tmp_path / "here"):
        shutil.copytree(files.base, place / "models" / "base")
        monkeypatch.chdir(place if place.name == "here" else tmp_path)
        (checkpoint,) = open_run(adapter).checkpoints
        assert checkpoint.layout == "adapter"
        assert checkpoint.config_folder.resolve() == place / "models" / "base"
        shutil.rmtree(place / "models")


def test_a_base_model_that_is_not_there(written: Writer, probe: Path, tmp_path: Path) -> None:
    files = written("qwen3_moe", "routers")
    adapter = tmp_path / "adapter"
    shutil.copytree(files.adapter, adapter)
    edit(adapter, base_model_name_or_path="some/model-30B")
    with pytest.raises(PathError, match="some/model-30B") as caught:
        measure(adapter, probe)
    for words in ("--config", "hf download some/model-30B"):
        assert words in str(caught.value.hint)
    assert_same(adapter, files.merged, probe, config=files.base)
    run = run_of([adapter], tmp_path / "run")
    with pytest.raises(MoegeoError) as caught_run:
        open_run(run)
    assert "some/model-30B" in f"{caught_run.value.message} {caught_run.value.found}"
    edit(adapter, base_model_name_or_path=str(files.adapter))
    with pytest.raises(UnsupportedLayoutError, match="holds no weights"):
        open_run(adapter)
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(PathError, match="names no base model"):
        open_run(adapter)
    edit(adapter, base_model_name_or_path=str(beside(files, tmp_path / "both")))
    with pytest.raises(UnsupportedLayoutError, match="holds an adapter itself"):
        open_run(adapter)


# -- what is said of it


def test_inspect_and_fingerprint(written: Writer, tmp_path: Path) -> None:
    files = written("qwen3_moe", "experts")
    found = inspect(files.adapter)
    assert found.problem is None
    assert found.layout == "adapter"
    merged = "a LoRA adapter of rank 4 merged into 4 weights"
    assert found.weights["adapter"]["merged"] == merged
    assert found.routers_found == 2
    both = beside(files, tmp_path / "both")
    prints = {open_run(path).newest.fingerprint() for path in (files.base, files.adapter)}
    assert open_run(both).newest.fingerprint() in prints  # the same model in other folders
    tensors = load_file(both / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    tensors[first][0, 0] += 1
    save_file(tensors, both / "adapter_model.safetensors")
    prints.add(open_run(both).newest.fingerprint())
    edit(both, lora_alpha=7)
    prints.add(open_run(both).newest.fingerprint())
    assert len(prints) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_which_routers_and_experts_it_moves(kind: str, written: Writer, tmp_path: Path) -> None:
    files = written("qwen3_moe", kind)
    found = inspect(files.adapter)
    moves = found.weights["adapter"]["moves"]
    before, after = (load_file(p / "model.safetensors") for p in (files.base, files.merged))
    part = {"routers": "router", "experts": "experts", "attention": None}[kind]
    assert [(m["part"], m["layer"]) for m in moves] == [(part, n) for n in (1, 2) if part]
    for move in moves:
        inside = f"layers.{move['layer']}.mlp.{'gate.' if part == 'router' else 'experts.'}"
        names = [name for name in before if inside in name]
        change = sum(float(((after[n] - before[n]).double() ** 2).sum()) for n in names)
        weight = sum(float((before[n].double() ** 2).sum()) for n in names)
        assert move["relative"] == pytest.approx((change / weight) ** 0.5, rel=1e-6)
    text = io.StringIO()
    print_inspection(found, Console(file=text, width=80))
    assert "ADAPTER" in text.getvalue()
    assert ("6 of 6 experts" in text.getvalue()) is (kind == "experts")
    assert ("no router and no expert" in text.getvalue()) is (kind == "attention")


def test_check_sees_what_the_model_computes_with(written: Writer, tmp_path: Path) -> None:
    files = written("qwen3_moe", "experts")
    other = write(tmp_path / "other", "qwen3_moe", seed=5, base=files.base, **EXPERTS)
    run = run_of([other.adapter, files.adapter], tmp_path / "run")
    twin = run_of([other.merged, files.merged], tmp_path / "twin")
    found, wanted = check(run, cache=False), check(twin, cache=False)
    for one, two in zip(found.checkpoints, wanted.checkpoints, strict=True):
        for layer, same in zip(one.layers, two.layers, strict=True):
            values = {n: m.value for n, m in layer.metrics.items() if m.value is not None}
            expected = {n: m.value for n, m in same.metrics.items() if m.value is not None}
            assert values == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)
    names = [finding.name for finding in found.verdict.findings]
    assert names == [finding.name for finding in wanted.verdict.findings]
    assert "router-frozen" in names  # the adapter moves experts alone
    assert "experts-frozen" not in names


# -- what is refused


def refused(path: Path, kind: type[MoegeoError], words: str) -> MoegeoError:
    index = Checkpoint(path).weights
    with pytest.raises(kind, match=words) as caught:
        index.resolve()
    with pytest.raises(MoegeoError):
        index.tensor(index.names()[0])  # never without the adapter
    problem = inspect(path).problem
    assert problem is not None
    assert caught.value.message in problem
    return caught.value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_key_of_tomorrow": True}, "a_key_of_tomorrow"),
    ],
)
def test_adapters_of_other_kinds(
    values: dict[str, Any], words: str, written: Writer, tmp_path: Path
) -> None:
    both = beside(written("qwen3_moe", "routers"), tmp_path / "both")
    edit(both, **values)
    refused(both, UnsupportedLayoutError, words)


@pytest.mark.parametrize(
    "values", [{"r": 0}, {"r": "4"}, {"lora_alpha": None}, {"rank_pattern": {"(": 4}},
               {"rank_pattern": {"(a+)+": 4}}, {"rank_pattern": {"a{60000}": 4}},
               {"rank_pattern": {"(" * 600 + ")" * 600: 4}},
               {"target_parameters": "gate"}, {"alpha_pattern": [1]}],
)  # fmt: skip
def test_a_config_with_wrong_values(
    values: dict[str, Any], written: Writer, tmp_path: Path
) -> None:
    both = beside(written("qwen3_moe", "routers"), tmp_path / "both")
    edit(both, **values)
    error = refused(both, IncompleteCheckpointError, "adapter_config.json")
    assert next(iter(values)) in str(error.found)


def test_a_pattern_that_never_ends(
    written: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two to the fortieth ways over a name."""
    monkeypatch.setattr("moegeo_cli.checkpoints.adapters.config._SECONDS", 0.05)
    both = beside(written("qwen3_moe", "routers"), tmp_path / "both")
    back = "".join(rf"\{group}" for group in range(3, 41))
    edit(both, rank_pattern={"(.?)" * 40 + back + "[^w]": 4})
    error = refused(both, IncompleteCheckpointError, "takes too long")
    assert "plain module names" in str(error.hint)


def test_tensors_that_do_not_fit(written: Writer, probe: Path, tmp_path: Path) -> None:
    both = beside(written("qwen3_moe", "routers"), tmp_path / "both")
    file = both / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "lora_B" in n)
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    assert "lora_B of" in refused(both, IncompleteCheckpointError, "lacks lora_B").message
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file)
    refused(both, ShapeError, "does not fit")
    save_file({**tensors, name: torch.zeros(0)}, file)
    refused(both, ShapeError, "empty or not 2-D")
    other = {n.replace("layers.1.", "layers.7."): t for n, t in tensors.items()}
    save_file(other, file)
    error = refused(both, UnsupportedLayoutError, "fits no weight")
    assert "layers.7" in str(error.found)
    with pytest.raises(UnsupportedLayoutError, match="fits no weight"):
        measure(both, probe)
    save_file({**tensors, "base_model.model.stranger.weight": torch.zeros(2)}, file)
    refused(both, UnsupportedLayoutError, "fits no weight")


def test_an_adapter_that_is_half_written(written: Writer, tmp_path: Path) -> None:
    files = written("qwen3_moe", "routers")
    for kept in ("adapter_config.json", "adapter_model.safetensors"):
        folder = tmp_path / kept
        folder.mkdir()
        shutil.copy(files.adapter / kept, folder)
        with pytest.raises(IncompleteCheckpointError, match=r"adapter_config\.json"):
            open_run(folder)


def test_an_adapter_beside_weights_that_is_cut(written: Writer, tmp_path: Path) -> None:
    both = beside(written("qwen3_moe", "routers"), tmp_path / "run" / "checkpoint-5")
    file = both / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(IncompleteCheckpointError, match="adapter_model"):
        open_run(both)
    with pytest.raises(IncompleteCheckpointError, match="none of the 1 checkpoints in"):
        open_run(both.parent)


def test_an_adapter_that_would_run_code(written: Writer, tmp_path: Path) -> None:
    both = beside(written("qwen3_moe", "routers"), tmp_path / "both")
    (both / "adapter_model.safetensors").unlink()
    torch.save({"lora_A": Path("x")}, both / "adapter_model.bin")
    refused(both, UnsafeFileError, "asks for code")
