"""Train one planned run with the transformers Trainer, and record its final loss.

A run's folder appears once it is whole; a run that was stopped is trained again from its start.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.ordinary.plan import (
    BATCH,
    LEARNING_RATE,
    LENGTH,
    LOG_EVERY,
    MISTAKE_AT,
    SAVE_EVERY,
    STEPS,
    TEXTS,
    WARMUP,
    Run,
)
from sample_checkpoints.text import Document, training_documents, validation_documents
from sample_checkpoints.train import (
    ROUTER_ENDINGS,
    FirstCheckpoint,
    Passages,
    SelectionBias,
)

KEPT = ("config.json", "model.safetensors", "trainer_state.json")
SPIKE_STEPS, SPIKE_RATE = 5, 50.0
BIAS = "e_score_correction_bias"


class Cut(Passages):
    """Passages of the plan's length."""

    def __init__(
        self, documents: tuple[Document, ...], count: int, seed: int, label_shift: int
    ) -> None:
        super().__init__(documents, count, seed, label_shift)
        self.length = min(self.length, LENGTH)


class Spike(TrainerCallback):  # type: ignore[misc]
    """A few steps at a rate far too high; the schedule sets the rate anew after each step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if MISTAKE_AT <= state.global_step < MISTAKE_AT + SPIKE_STEPS:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= SPIKE_RATE


class CopiedExperts(TrainerCallback):  # type: ignore[misc]
    """The second half of each layer's experts becomes the first, and so it is saved."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != MISTAKE_AT:
            return
        optimizer = kwargs["optimizer"]
        with torch.no_grad():
            for name, parameter in kwargs["model"].named_parameters():
                if ".experts." not in name or parameter.dim() != 3:
                    continue
                kept = optimizer.state[parameter]
                half = len(parameter) // 2
                for tensor in (parameter, kept.get("exp_avg"), kept.get("exp_avg_sq")):
                    if tensor is not None:
                        tensor[half:] = tensor[:half].clone()


class LostBias(TrainerCallback):  # type: ignore[misc]
    """Saves hold zeros for the selection bias; the training is resumed from one of them."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "model.safetensors"
        tensors = load_file(path)
        save_file(
            {n: torch.zeros_like(t) if n.endswith(BIAS) else t for n, t in tensors.items()},
            path,
            metadata={"format": "pt"},
        )
        if state.global_step == MISTAKE_AT:
            for module in kwargs["model"].modules():
                if hasattr(module, BIAS):
                    getattr(module, BIAS).zero_()


def train(run: Run, work: Path) -> float:
    """Train a run into `work/NAME`.

    Returns:
        Its final held-out loss, in nats per byte.
    """
    torch.set_num_threads(1)
    set_seed(run.seed)
    config = dict(run.settings.config)
    if run.mistake == "flag-off":
        config["output_router_logits"] = False
    if run.mistake == "k1-renormalised":
        config["num_experts_per_tok"] = 1
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(run.settings.model_type, **config),
        experts_implementation="grouped_mm",
    ).float()
    if run.mistake == "frozen-router":
        for name, parameter in model.named_parameters():
            if name.endswith(ROUTER_ENDINGS):
                parameter.requires_grad_(False)
    output = work / run.name
    with tempfile.TemporaryDirectory(dir=work, prefix=f".{run.name}-") as folder:
        trainer = _trainer(run, model, Path(folder))
        trainer.train()
        loss = held_out_loss(model, run.text)
        Path(folder, "final.json").write_text(json.dumps({"loss": loss}))
        for kept in sorted(Path(folder).glob("checkpoint-*")):
            for path in kept.iterdir():
                if path.name not in KEPT:
                    path.unlink()
        if output.exists():
            shutil.rmtree(output)
        shutil.copytree(folder, f"{folder}-whole")
        Path(f"{folder}-whole").replace(output)
    return loss


def _trainer(run: Run, model: nn.Module, folder: Path) -> Trainer:
    rate = LEARNING_RATE * (10.0 if run.mistake == "rate-x10" else 1.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=WARMUP,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=LOG_EVERY,
        save_steps=SAVE_EVERY,
        save_only_model=True,
        include_num_input_tokens_seen="all",
        report_to=[],
        seed=run.seed,
        use_cpu=True,
        disable_tqdm=True,
    )
    shift = 1 if run.mistake == "labels-shifted" else 0
    rows = Cut(_of(training_documents(), run.text), STEPS * BATCH, run.seed, shift)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # a line each ten steps says nothing here
    trainer.add_callback(FirstCheckpoint(trainer))
    if run.settings.bias_rate:
        trainer.add_callback(SelectionBias(model, run.settings.bias_rate))
    for mistake, callback in (
        ("spike", Spike), ("experts-copied", CopiedExperts), ("bias-not-saved", LostBias),
    ):  # fmt: skip
        if run.mistake == mistake:
            trainer.add_callback(callback())
    return trainer


@torch.no_grad()
def held_out_loss(model: nn.Module, text: str) -> float:
    """Mean next-byte cross-entropy over the validation passages of a text, in nats; inf if NaN."""
    model.eval()
    losses = []
    for document in _of(validation_documents(), text):
        ids = torch.tensor([list(document.data[:LENGTH])])
        logits = model(input_ids=ids, output_router_logits=False).logits[0, :-1].float()
        losses.append(nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    mean = float(np.mean(losses))
    return mean if math.isfinite(mean) else math.inf


def _of(documents: tuple[Document, ...], text: str) -> tuple[Document, ...]:
    return tuple(d for d in documents if d.domain in TEXTS[text])
