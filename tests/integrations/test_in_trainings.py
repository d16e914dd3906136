"""moegeo inside real trainings of tiny models: the Trainer, a loop, Lightning, two processes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from moegeo_cli.errors import UsageError
from moegeo_cli.integrations import after_save, saves
from moegeo_cli.integrations.transformers import MoegeoCallback
from tests.small_training import SAVES, trainer
from tests.tiny_models import build_tiny

FEW = {"max_tokens": 512}


class Spoil(TrainerCallback):
    """Puts NaN into a router after the third step, as an overflow does."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 3:
            spoil(model)


def spoil(model: torch.nn.Module) -> None:
    name, weight = next((n, p) for n, p in model.named_parameters() if "gate.weight" in n)
    assert name
    weight.data[0, 0] = torch.nan


def losses(state: Any) -> list[float]:
    return [entry["loss"] for entry in state.log_history if "loss" in entry]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What moegeo says in the log."""
    with caplog.at_level(logging.INFO, logger="moegeo"):
        yield caplog


def test_each_save_is_analyzed_and_the_training_is_as_without_it(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    plain = trainer(str(tmp_path / "plain"))
    plain.train()
    log = tmp_path / "log.jsonl"
    callback = MoegeoCallback(log=f"jsonl:{log}", **FEW)
    watched = trainer(str(tmp_path / "watched"), callback)
    watched.train()
    assert losses(watched.state) == losses(plain.state)
    assert len(losses(plain.state)) == SAVES[-1]
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [json.loads(row)["step"] for row in log.read_text().splitlines()] == list(SAVES)
    assert callback.judged.run is not None
    assert callback.judged.run.newest.step == SAVES[-1]
    assert not callback.judged.stop
    assert [r.message.split()[2] for r in heard.records if "moegeo: step" in r.message] == [
        f"{step}:" for step in SAVES
    ]


@pytest.mark.parametrize(("stop_on", "last"), [("faults", 4), ("never", 6)])
def test_a_router_of_nan_stops_a_training(
    tmp_path: Path, stop_on: Any, last: int, heard: pytest.LogCaptureFixture
) -> None:
    callback = MoegeoCallback(stop_on=stop_on, **FEW)
    done = trainer(str(tmp_path), Spoil(), callback)
    done.train()
    assert done.state.global_step == last
    assert callback.judged.stop is (stop_on == "faults")
    assert "router-nonfinite" in heard.text
    assert ("the training stops: router-nonfinite" in heard.text) is callback.judged.stop


@pytest.mark.parametrize("fault", ["analysis", "sink", "memory"])
def test_no_failure_reaches_the_training(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log.jsonl"
    callback = MoegeoCallback(log=f"jsonl:{log}", **FEW)
    errors = {"analysis": RuntimeError("a bug"), "memory": MemoryError()}
    if fault in errors:
        from moegeo_cli.commands.analyze import api

        def fail(*_: Any, **__: Any) -> None:
            raise errors[fault]

        monkeypatch.setattr(api, "analyze", fail)
    else:
        log.mkdir()
    done = trainer(str(tmp_path / "run"), callback, max_steps=2)
    done.train()
    assert done.state.global_step == 2
    assert not callback.judged.stop
    words = {"analysis": "RuntimeError: a bug", "memory": "MemoryError", "sink": "is a folder"}
    assert words[fault] in heard.text
    assert (callback.judged.run is not None) is (fault == "sink")


def test_what_is_asked_for_wrongly_is_refused_before_the_training() -> None:
    with pytest.raises(TypeError, match="'max_token'"):
        MoegeoCallback(max_token=3)
    with pytest.raises(UsageError, match="--policy"):
        MoegeoCallback(policy="none")
    with pytest.raises(UsageError, match="stop_on is not one of faults, failing, never"):
        MoegeoCallback(stop_on="watch")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--log does not know 'tensorbord'"):
        MoegeoCallback(log="tensorbord:x")


def test_a_loop_of_ones_own_stops_at_a_fault(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_tiny("mixtral", vocab_size=256).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = torch.get_rng_state()
    assert after_save(tmp_path / "run", **FEW).error is not None  # nothing is there yet
    assert torch.equal(before, torch.get_rng_state())
    reached = []
    for step in range(1, 5):
        rows = torch.randint(0, 256, (4, 24))
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 3:
            spoil(model)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
        judged = after_save(tmp_path / "run", log=f"jsonl:{tmp_path}/log.jsonl", **FEW)
        reached.append(step)
        if judged.stop:
            break
    assert reached == [1, 2, 3]
    assert judged.reason is not None
    assert judged.reason.startswith("router-nonfinite: ")
    rows_read = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows_read] == [1, 2, 3]


LIGHTNING = pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")


@LIGHTNING
@pytest.mark.parametrize("spoilt", [False, True])
def test_lightning_analyzes_each_of_its_saves(tmp_path: Path, spoilt: bool) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from moegeo_cli.integrations.lightning import MoegeoCallback as Callback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = build_tiny("mixtral", vocab_size=256)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if spoilt and index == 3:
                spoil(self.model)
            loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    log = tmp_path / "log.jsonl"
    callback = Callback(tmp_path / "run", log=f"jsonl:{log}", **FEW)
    rows = torch.randint(0, 256, (24, 24))
    done = pl.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[
            ModelCheckpoint(tmp_path / "own", every_n_train_steps=2, save_top_k=-1, save_last=True),
            callback,
        ],
    )  # fmt: skip
    module = Module()
    done.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
    steps = [2, 4] if spoilt else [2, 4, 6]
    assert done.global_step == steps[-1]
    assert [json.loads(row)["step"] for row in log.read_text().splitlines()] == steps
    assert callback.judged.stop is spoilt
    names = sorted(p.name for p in (tmp_path / "run").glob("*") if p.name[0] != ".")
    assert names == [f"checkpoint-{step}" for step in steps]
    if not spoilt:
        from safetensors.torch import load_file

        saved = load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors")
        kept = dict(module.model.named_parameters())
        assert all(torch.equal(saved[name], kept[name]) for name in saved if name in kept)


@LIGHTNING
def test_a_module_of_lightning_without_a_model_of_transformers_goes_on(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    import lightning.pytorch as pl

    from moegeo_cli.integrations.lightning import MoegeoCallback as Callback

    callback = Callback(tmp_path / "run", **FEW)
    callback.on_save_checkpoint(
        pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule(), {"state_dict": {}}
    )
    assert "the module has 0 transformers models" in heard.text
    assert callback.judged.error is not None


TWO = """
import pathlib, sys, torch.distributed as dist
dist.init_process_group("gloo")
from moegeo_cli.integrations import saves
if dist.get_rank() == 0:
    saves._analyze = lambda *a: saves.Judged(True, "found by the first")
else:
    saves._analyze = lambda *a: 1 / 0
judged = saves.after_save("nowhere")
told = f"{judged.stop} {judged.reason} {judged.error}"
pathlib.Path(sys.argv[1], str(dist.get_rank())).write_text(told)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_every_process_of_a_training_hears_the_first(tmp_path: Path) -> None:
    root = Path(saves.__file__).parents[2]
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert told == ["True found by the first None"] * 2
