"""A small training by the transformers Trainer, which waits at each save until it was seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.tiny_models import build_tiny

SAVES = (2, 4, 6)
PATIENCE = 60.0  # seconds


class WaitForLines(TrainerCallback):
    """Goes on after a save when a file has a line for it: what reads it sees a run that trains."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.saved = 0

    def on_save(self, *_: Any, **__: Any) -> None:
        self.saved += 1
        end = time.monotonic() + PATIENCE
        while not self.file.exists() or len(self.file.read_text().splitlines()) < self.saved:
            assert time.monotonic() < end
            time.sleep(0.05)


def trainer(out: str, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    """Six steps of a tiny Mixtral, saved at every second."""
    torch.manual_seed(0)
    model = build_tiny("mixtral", vocab_size=256)
    rows = [{"input_ids": r, "labels": r} for r in torch.randint(0, 256, (64, 24))]
    arguments = {
        "output_dir": out, "max_steps": SAVES[-1], "save_steps": SAVES[0],
        "per_device_train_batch_size": 8, "report_to": [], "logging_steps": 1, "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    return Trainer(
        model=model, args=TrainingArguments(**{**arguments, **more}), train_dataset=rows,
        callbacks=list(callbacks),
    )  # fmt: skip
