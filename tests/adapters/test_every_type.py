"""Adapters of every part of every model type against peft's own merged weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import UnsupportedLayoutError
from moegeo_cli.models.loading import load_model
from tests.adapters.files import randomise
from tests.architectures.test_every_type import TYPES
from tests.architectures.zoo import save_tiny

CPU = torch.device("cpu")
REFUSED = {"inkling2_text": "in a form that moegeo does not merge into"}
NO_PEFT = {"nemotron_h"}  # peft itself refuses a module of its Mamba layers


def targets(model: nn.Module) -> tuple[list[str], list[str]]:
    """Every linear module but the head, and every parameter of routers and fused experts."""
    modules = [n for n, m in model.named_modules() if type(m) is nn.Linear and "lm_head" not in n]
    parameters = [
        name
        for name, tensor in model.named_parameters()
        if tensor.ndim in (2, 3)
        and any(word in name for word in ("expert", "gate", "router"))
        and name.rpartition(".")[0] not in modules
        and "conv" not in name
        and "moe_statics" not in name  # within a router, which peft's wrapper hides from its block
    ]
    return modules, parameters


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [t for t in TYPES if t not in NO_PEFT])
def test_an_adapter_of_everything(model_type: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    save_tiny(model_type, tmp_path / "base")
    model = load_model(Checkpoint(tmp_path / "base"), CPU, torch.float32)
    modules, parameters = targets(model)
    assert modules
    assert parameters
    config = LoraConfig(r=3, lora_alpha=4, target_modules=modules, target_parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, config)  # type: ignore[arg-type]
        randomise(tuned, 1)
        tuned.save_pretrained(tmp_path / "adapter")
        want = tuned.merge_and_unload().state_dict()  # type: ignore[operator]
    adapter = Checkpoint(tmp_path / "adapter", given_config=tmp_path / "base")
    if model_type in REFUSED:
        with pytest.raises(UnsupportedLayoutError, match=REFUSED[model_type]):
            load_model(adapter, CPU, torch.float32)
        return
    have = load_model(adapter, CPU, torch.float32).state_dict()
    assert set(have) == set(want)
    for name, values in want.items():
        torch.testing.assert_close(have[name], values, rtol=1e-5, atol=1e-6)
