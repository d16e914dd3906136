"""Train the sample runs: `python -m sample_checkpoints.train [--recipe NAME] [--seed N]`.

`--set KEY=VALUE` changes a key of the recipe's model config, as the tutorial does.

The transformers Trainer trains and saves; this script adds the step-0 checkpoint, learning
rates for the routers, and DeepSeek's balancing rule, which transformers does not apply.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from sample_checkpoints.recipes import RECIPES, Recipe
from sample_checkpoints.text import Document, training_documents, validation_documents

STEPS = 400
SAVE_EVERY = 100
BATCH = 16
HERE = Path(__file__).parent
ROUTER_ENDINGS = ("gate.weight", "router.weight")


class Passages(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Passages as bytes, domains in turn, each domain in an order of its own."""

    def __init__(
        self, documents: tuple[Document, ...], count: int, seed: int, label_shift: int = 0
    ) -> None:
        self.label_shift = label_shift
        by_domain: dict[str, list[Document]] = {}
        for document in documents:
            by_domain.setdefault(document.domain, []).append(document)
        generator = np.random.default_rng(seed)
        columns = [
            [own[i] for _ in range(count // len(own) + 1) for i in generator.permutation(len(own))]
            for _, own in sorted(by_domain.items())
        ]
        self.rows = [columns[i % len(columns)][i // len(columns)].data for i in range(count)]
        # one length a batch: nothing is padded
        self.length = min(len(row) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor(list(self.rows[place][: self.length]))
        labels = ids
        if self.label_shift:  # the mistake of shifting what the model shifts again
            labels = torch.full_like(ids, -100)
            labels[: -self.label_shift] = ids[self.label_shift :]
        return {"input_ids": ids, "labels": labels}


class LayerwiseBalance(Trainer):  # type: ignore[misc]
    """Adds a balance loss for each layer by itself: E · Σ_e load_e · mean p_e, 1 at balance.

    Source: Switch Transformers (arXiv 2101.03961), equation 4, over the whole batch.
    """

    coefficient: float = 0.0

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        if not self.coefficient:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        outputs = model(**inputs, output_router_logits=True)
        loss = outputs.loss
        if model.training:
            top_k = self.model.config.num_experts_per_tok
            for logits_TE in outputs.router_logits:
                p_TE = logits_TE.float().softmax(-1)
                chosen_TE = torch.zeros_like(p_TE).scatter(1, p_TE.topk(top_k).indices, 1.0)
                load_E = chosen_TE.mean(0) / top_k
                balance = p_TE.shape[1] * (load_E * p_TE.mean(0)).sum()
                loss = loss + self.coefficient * balance
        return (loss, outputs) if return_outputs else loss


class FirstCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Saves the model as it was before the first step, as the Trainer saves the others."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / "checkpoint-0"
        self.trainer.save_model(str(folder))
        state.save_to_json(str(folder / "trainer_state.json"))


class SelectionBias(TrainerCallback):  # type: ignore[misc]
    """DeepSeek's rule after each step: bias += rate · sign(mean load − load), global batch.

    Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.routers = [m for m in model.modules() if hasattr(m, "e_score_correction_bias")]
        self.loads = [torch.zeros_like(r.e_score_correction_bias) for r in self.routers]
        for router, load in zip(self.routers, self.loads, strict=True):
            router.register_forward_hook(self._counter(load))

    @staticmethod
    def _counter(load: torch.Tensor) -> Any:
        def count(module: nn.Module, _: Any, output: Any) -> None:
            if module.training:
                load.add_(torch.bincount(output[-1].reshape(-1), minlength=len(load)))

        return count

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for router, load in zip(self.routers, self.loads, strict=True):
            bias: torch.Tensor = router.e_score_correction_bias  # type: ignore[assignment]
            bias.add_(self.rate * torch.sign(load.mean() - load))
            load.zero_()


def train(recipe: Recipe, seed: int, output: Path, *, keep_optimizer: bool = True) -> None:
    """Train one run into `output`, which is replaced once the run is whole."""
    torch.set_num_threads(1)
    set_seed(seed)
    model = build(recipe)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        arguments = TrainingArguments(
            output_dir=work,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.warmup,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=SAVE_EVERY,
            save_steps=SAVE_EVERY,
            save_only_model=recipe.optimizer_at is None,
            include_num_input_tokens_seen="all",
            report_to=[],
            seed=seed,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        trainer = LayerwiseBalance(
            model=model,
            args=arguments,
            train_dataset=Passages(training_documents(), STEPS * BATCH, seed, recipe.label_shift),
            eval_dataset=Passages(validation_documents(), 128, 0, recipe.label_shift),
            optimizers=(build_optimizer(model, recipe), None),
        )
        trainer.coefficient = recipe.balance
        trainer.add_callback(FirstCheckpoint(trainer))
        if recipe.bias_rate:
            trainer.add_callback(SelectionBias(model, recipe.bias_rate))
        trainer.train()
        for folder in sorted(Path(work).glob("checkpoint-*")):
            kept = keep_optimizer and folder.name == f"checkpoint-{recipe.optimizer_at}"
            _tidy(folder, keep_optimizer=kept)
        if output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        for folder in sorted(Path(work).glob("checkpoint-*")):
            shutil.move(folder, output / folder.name)


def build(recipe: Recipe) -> nn.Module:
    """A freshly initialised model of the recipe."""
    config = AutoConfig.for_model(recipe.model_type, **recipe.config)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.float()


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, with the routers in a group of their own."""
    routers, others = [], []
    for name, parameter in model.named_parameters():
        (routers if name.endswith(ROUTER_ENDINGS) else others).append(parameter)
    groups = [
        {"params": others, "lr": recipe.learning_rate},
        {"params": routers, "lr": recipe.learning_rate * recipe.router_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.95))


def _tidy(folder: Path, *, keep_optimizer: bool) -> None:
    """Leave what an analysis reads: no pickles of arguments, schedules or random states."""
    wanted = {"config.json", "model.safetensors", "trainer_state.json"}
    wanted |= {"optimizer.pt"} if keep_optimizer else set()
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="default: all")
    parser.add_argument("--seed", type=int, help="default: the recipe's own")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the run's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="key of the model's config and its value in JSON")  # fmt: skip
    options = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (s.partition("=") for s in options.set)}
    for name in options.recipe or RECIPES:
        recipe = RECIPES[name]
        recipe = dataclasses.replace(recipe, config={**recipe.config, **changes})
        seed = recipe.seed if options.seed is None else options.seed
        folder = name if options.seed is None else f"{name}-{seed}"
        options.output.mkdir(parents=True, exist_ok=True)
        with _quiet():
            train(recipe, seed, options.output / folder)
        print(f"{folder}: trained")


if __name__ == "__main__":
    main()
