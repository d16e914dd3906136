"""Each bad input gives a clear error and exit 2; nothing is half-written, no traceback."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.errors import UsageError
from tests.end_to_end.conftest import Outcome, random_ids, write_probe

Break = Callable[[Path], None]


@pytest.fixture
def checkpoint(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(tiny("mixtral", 0), path)
    return path


def weights(path: Path) -> Path:
    return path / "model.safetensors"


def truncate(path: Path) -> None:
    data = weights(path).read_bytes()
    weights(path).write_bytes(data[: len(data) // 2])


def drop_router(path: Path) -> None:
    tensors = {n: t for n, t in load_file(weights(path)).items() if "gate.weight" not in n}
    save_file(tensors, weights(path), metadata={"format": "pt"})


def wrong_shape(path: Path) -> None:
    tensors = load_file(weights(path))
    name = next(n for n in tensors if n.endswith("gate.weight"))
    tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1])
    save_file(tensors, weights(path), metadata={"format": "pt"})


def no_weights(path: Path) -> None:
    weights(path).unlink()


def missing_shard(path: Path) -> None:
    tensors = load_file(weights(path))
    names = sorted(tensors)
    half = len(names) // 2
    files = {"model-00001-of-00002.safetensors": names[:half],
             "model-00002-of-00002.safetensors": names[half:]}  # fmt: skip
    where = {n: f for f, own in files.items() for n in own}
    save_file({n: tensors[n] for n in names[:half]}, path / "model-00001-of-00002.safetensors")
    weights(path).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def dense(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    dense_config = {k: v for k, v in config.items() if "expert" not in k}
    (path / "config.json").write_text(json.dumps({**dense_config, "model_type": "llama"}))


def broken_config(path: Path) -> None:
    (path / "config.json").write_text('{"model_type": "mixtral", ')


def pickled(path: Path) -> None:
    import pickle

    weights(path).unlink()

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (eval, (f"open({str(path / 'ran')!r}, 'w')",))

    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


CASES: dict[str, tuple[Break, str]] = {
    "truncated": (truncate, "model.safetensors"),
    "router missing": (drop_router, "gate"),
    "wrong shape": (wrong_shape, "gate"),
    "no weights": (no_weights, "model"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors"),
    "dense": (dense, "llama"),
    "broken config": (broken_config, "config.json"),
    "pickle that runs code": (pickled, "pytorch_model.bin"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint(
    case: str, checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    spoil, word = CASES[case]
    spoil(checkpoint)
    for command in (
        ("analyze", checkpoint, "--probe", probe, "--format", "json"),
        ("analyze", checkpoint, "--probe", probe, "--output", checkpoint / "out.json"),
    ):
        found = moegeo(*command)
        assert found.code == 2, (found.out, found.err)
        assert found.out == ""
        assert found.err.startswith("error[MG-E") or "\nerror[MG-E" in found.err
        assert word in found.err
        assert "Traceback" not in found.err
    assert not (checkpoint / "out.json").exists()
    assert not (checkpoint / "ran").exists()


def test_a_path_that_is_not_there(tmp_path: Path, moegeo: Callable[..., Outcome]) -> None:
    found = moegeo("analyze", tmp_path / "nothing")
    assert found.code == 2
    assert "nothing" in found.err


def test_a_folder_without_a_checkpoint(tmp_path: Path, moegeo: Callable[..., Outcome]) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    found = moegeo("analyze", tmp_path)
    assert found.code == 2
    assert "no checkpoint" in found.err.lower()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "token"),
        ('{"input_ids": []}\n', "token"),
        ('{"input_ids": [1, 64, 3]}\n', "64"),
        ('{"input_ids": [1, -2]}\n', "-2"),
        ('{"input_ids": [1, "two"]}\n', "line 1"),
        ('{"input_ids": [1, 2]}\nnot json\n', "line 2"),
        ('{"input_ids": [1, 2, 3], "labels": [1]}\n', "labels"),
    ],
)
def test_a_bad_probe(
    text: str, word: str, checkpoint: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    found = moegeo("analyze", checkpoint, "--probe", path, "--format", "json")
    assert found.code == 2, found.err
    assert word in found.err
    assert found.out == ""


def test_text_without_a_tokenizer_is_refused(
    checkpoint: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a word"}\n')
    found = moegeo("analyze", checkpoint, "--probe", path)
    assert found.code == 2
    assert "tokenizer" in found.err
    bundled = moegeo("analyze", checkpoint)  # it is text as well
    assert bundled.code == 2
    assert "the probe is text, and the checkpoint has no tokenizer" in bundled.err


def test_a_baseline_of_another_architecture(
    checkpoint: Path, tiny: Callable[..., Path], probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    other = tiny("olmoe", 0)
    found = moegeo("analyze", checkpoint, "--probe", probe, "--baseline", other)
    assert found.code == 2
    assert "baseline:olmoe-0 is of another architecture than model" in found.err
    assert "baseline" in found.err or "architecture" in found.err


def test_an_output_that_cannot_be_written(
    checkpoint: Path, probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    (tmp_path / "file").write_text("")
    found = moegeo("analyze", checkpoint, "--probe", probe, "--format", "json",
                   "--output", tmp_path / "file" / "out.json")  # fmt: skip
    assert found.code == 2
    assert "out.json" in found.err


def test_an_incomplete_checkpoint_is_skipped_in_a_run_and_said(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    run = tmp_path / "run"
    for step in (0, 5, 10):
        shutil.copytree(tiny("mixtral", 0), run / f"checkpoint-{step}")
    truncate(run / "checkpoint-10")
    found = moegeo("analyze", run, "--probe", probe, "--format", "json")
    assert found.code == 0, found.err
    assert [c["step"] for c in found.document["checkpoints"]] == [0, 5]
    assert found.document["status"] == "partial"
    skipped = found.document["run"]["skipped"]
    assert [s["path"] for s in skipped] == ["checkpoint-10"]


def test_bad_options(checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]) -> None:
    for options in (
        ("--device", "nonsense"), ("--layers", "a-b"), ("--layers", "99"), ("--steps", "7"),
        ("--baseline", "77"), ("--baseline", "no/such/path"), ("--fisher", "adam"),
        ("--framework", "nonsense"), ("--max-tokens", "0"), ("--seed", "-1"),
        ("--fisher", "categorical", "--unit", "sequence"), ("--exact", "--unit", "sequence"),
        ("--device", "meta"),
    ):  # fmt: skip
        found = moegeo("analyze", checkpoint, "--probe", probe, *options)
        assert found.code == 2, (options, found.err)
        assert "Traceback" not in found.err


def test_different_probes_are_not_compared(
    checkpoint: Path, tiny: Callable[..., Path], tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    """The second model's context is shorter: its sequences are cut."""
    from tests.tiny_models import save_tiny

    one, other = tmp_path / "a" / "checkpoint-5", tmp_path / "b" / "checkpoint-5"
    shutil.copytree(checkpoint, one)
    save_tiny("mixtral", other, vocab_size=32, max_position_embeddings=16)
    probe = write_probe(tmp_path / "p.jsonl", random_ids([20] * 8, vocabulary=32))
    found = moegeo("compare", one.parent, other.parent, "--probe", probe, "--by", "step")
    assert found.code == 2
    assert "the runs were not measured with the same probe" in found.err


def test_a_checkpoint_without_a_step_is_not_matched_by_it(
    checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("compare", checkpoint, checkpoint, "--probe", probe, "--by", "step")
    assert found.code == 2
    assert "cannot match by step\n  found: not recorded in model\n" in found.err


@pytest.mark.parametrize(
    "change",
    [{"num_experts_per_tok": 0}, {"num_experts_per_tok": -1}, {"num_experts_per_tok": 99},
     {"num_hidden_layers": 10**9}],
)  # fmt: skip
def test_a_config_that_asks_for_the_impossible(
    change: dict[str, int], tiny: Callable[..., Path], probe: Path, tmp_path: Path,
    moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    broken = tmp_path / "broken"
    shutil.copytree(tiny("mixtral", 0), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, **change}))
    found = moegeo("analyze", broken, "--probe", probe, "--no-cache")
    assert found.code == 2
    assert "MG-E015" in found.err


@pytest.mark.parametrize(
    ("text", "words"),
    [('[tool.moegeo\nfail-on = "failing"\n', "pyproject.toml cannot be read as TOML"),
     ("[tool]\nmoegeo = 5\n", "pyproject.toml is not a table"),
     ("[broken\n", ""), ("tool = 5\n", "")],
)  # fmt: skip
def test_a_settings_file_that_cannot_be_read(
    text: str, words: str, tiny: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = moegeo("inspect", tiny("mixtral", 0))
    assert found.code == (2 if words else 0)
    assert words in found.err


def test_settings_of_a_file_take_effect(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    (tmp_path / "moegeo.toml").write_text(
        f'format = "json"\nno-cache = true\nseed = 7\nprobe = "{probe}"\n'
    )
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "copy"
    shutil.copytree(tiny("mixtral", 0), path)
    found = moegeo("analyze", path)
    assert found.document["settings"]["seed"] == 7
    assert not (path / ".moegeo").exists()
    (tmp_path / "moegeo.toml").write_text('format = "yaml"\n')
    refused = moegeo("analyze", path)
    assert refused.code == 2
    assert "Invalid value for '--format' / '-f'" in refused.err
    (tmp_path / "moegeo.toml").write_text("[thresholds]\ndead-experts = 0.5\n")
    refused = moegeo("analyze", path, "--probe", probe)
    assert refused.code == 2
    assert "the threshold dead-experts cannot be set" in refused.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_local_experts": "8"}, "not a whole number"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_act": "nonsense"}, "does not know 'nonsense'"),
        ({"vocab_size": 65}, "(64, 24) in the file, (65, 24) by the config"),
    ],
)
def test_a_config_that_no_model_can_be_built_from(
    change: dict[str, object], words: str, checkpoint: Path, probe: Path,
    moegeo: Callable[..., Outcome],
) -> None:  # fmt: skip
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **change}))
    found = moegeo("analyze", checkpoint, "--probe", probe, "--no-cache")
    assert found.code == 2
    assert "MG-E015" in found.err
    assert words in found.err


@pytest.mark.parametrize("content", [{"a": 1}, {"a": Path("x")}], ids=["plain", "an object"])
def test_a_pickle_that_torch_did_not_write(
    content: object, checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    weights(checkpoint).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    found = moegeo("analyze", checkpoint, "--probe", probe, "--no-cache")
    assert found.code == 2
    assert "not a file that torch.save wrote" in found.err


def test_an_optimizer_that_holds_more_than_tensors(
    checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    import torch

    torch.save({"state": {}, "param_groups": [], "x": Path("y")}, checkpoint / "optimizer.pt")
    found = moegeo("analyze", checkpoint, "--probe", probe, "--no-cache", "--fisher", "adam")
    assert found.code == 2
    assert "is refused" in found.err
    assert "weights_only" not in found.err  # torch's advice is to load it without protection
    assert "two options" not in found.err


def test_a_layer_without_a_router_is_named(
    checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("analyze", checkpoint, "--probe", probe, "--no-cache", "--layers", "0,7")
    assert found.code == 2
    assert "no router was found in layer 7" in found.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-tokens = true", "max-tokens in moegeo.toml does not take true or false"),
        ("seed = [1]", "must be a single value"),
        ("[analyze.thresholds]\nnear-ties = 1", "thresholds belong in the table"),
        ("[thresholds]\nnear-tie = 1", "did you mean near-ties?"),
        ("[thresholds.near-ties]\nvalue = 1\nlimit = 2", "nothing else"),
        ("[thresholds.near-ties]\nvalue = 1\nsource = 2", "is not text"),
    ],
)
def test_settings_that_cannot_be_meant(
    text: str, words: str, checkpoint: Path, tmp_path: Path, moegeo: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "moegeo.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = moegeo("analyze", checkpoint)
    assert found.code == 2
    assert words in found.err


def test_the_python_api_checks_what_it_is_given(checkpoint: Path, probe: Path) -> None:
    from moegeo_cli import analyze

    run = analyze(checkpoint, probe=probe, layers=[0, 2], cache=False)
    assert [x.layer for x in run.checkpoints[0].layers] == [0, 2]
    refused = (
        ({"layers": ["0"]}, "--layers is not a list of numbers"),
        ({"layers": 0}, "--layers is not a list of numbers"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1"),
        ({"steps": []}, "--steps is not a list of numbers"),
    )
    for wrong, words in refused:
        with pytest.raises(UsageError, match=words):
            analyze(checkpoint, probe=probe, cache=False, **wrong)


def test_nothing_is_measured_for_an_output_that_cannot_be_written(
    checkpoint: Path, probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for command in ("analyze", "invariance"):
        for place in (tmp_path / "file" / "out.json", tmp_path):
            found = moegeo(command, checkpoint, "--probe", probe, "--output", place)
            assert found.code == 2
            assert "[1/" not in found.err


def test_names_reach_stderr_as_text(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    run = tmp_path / "run\x1b[31m"
    shutil.copytree(tiny("mixtral", 0), run)
    found = moegeo("analyze", run, "--probe", probe, "--no-cache", "--format", "json")
    assert found.code == 0
    assert "\x1b" not in found.err
    assert "\x1b" not in moegeo("analyze", run / "gone").err


def test_progress_counts_what_is_measured(
    checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    few = ("--probe", probe, "--max-tokens", 200)
    arguments = ("analyze", checkpoint, *few, "--baseline", "init")
    for _ in range(2):  # measured, then from the store
        (checkpoint / ".moegeo").mkdir(exist_ok=True)
        for derived in (checkpoint / ".moegeo").glob("run-*.json"):
            derived.unlink()
        found = moegeo(*arguments)
        assert found.code == 0
        assert "[9/9] initialisation 7" in found.err
    rewritten = moegeo("invariance", checkpoint, *few)
    assert "5 measurements" in rewritten.err


def test_a_link_to_a_checkpoint_that_is_gone_is_said(
    tiny: Callable[..., Path], probe: Path, tmp_path: Path, moegeo: Callable[..., Outcome]
) -> None:
    shutil.copytree(tiny("mixtral", 0), tmp_path / "run" / "checkpoint-0")
    (tmp_path / "run" / "checkpoint-10").symlink_to(tmp_path / "gone")
    found = moegeo("analyze", tmp_path / "run", "--probe", probe, "--format", "json", "--no-cache")
    assert found.code == 0
    assert [s["path"] for s in found.document["run"]["skipped"]] == ["checkpoint-10"]
    assert found.document["status"] == "partial"


def test_without_a_command_there_is_help_and_no_error(moegeo: Callable[..., Outcome]) -> None:
    found = moegeo()
    assert found.code == 2
    assert "analyze" in found.out + found.err
    assert "error[" not in found.err


def test_the_next_commands_name_the_run(
    checkpoint: Path, probe: Path, moegeo: Callable[..., Outcome]
) -> None:
    found = moegeo("analyze", checkpoint, "--probe", probe, "--no-cache", "--full")
    assert f"moegeo analyze {checkpoint} --baseline init" in found.out.replace("\n", "")
