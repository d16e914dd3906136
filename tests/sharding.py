"""torch.distributed checkpoints of tiny models, saved by one process or by two.

`python -m tests.sharding OUT` saves what two ranks of FSDP save: OUT/TYPE by accelerate itself,
as the Trainer calls it, and OUT/titan as torchtitan does, the model beside the optimizer.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.tiny_models import build_tiny

TYPES = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss")
RANKS = 2


def save_state(state: Mapping[str, Any], folder: Path, **options: Any) -> Path:
    """Save a state dict as torch.distributed.checkpoint does, in this process."""
    import torch.distributed.checkpoint as dcp

    with _quiet():
        dcp.save(dict(state), checkpoint_id=folder, **options)
    return folder


def save_fsdp(model: Any, checkpoint: Path) -> Path:
    """A checkpoint as accelerate and the Trainer write it: without config.json."""
    save_state({"model": model.state_dict()}, checkpoint / "pytorch_model_fsdp_0")
    return checkpoint


def save_ranks(out: Path) -> Path:
    """Run this module in processes of its own."""
    command = [sys.executable, "-m", "tests.sharding", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], timeout=300)
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rank(rank: int, out: str) -> None:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState
    from accelerate.utils.fsdp_utils import save_fsdp_model
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import StateDictType, fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    folder = Path(out)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    plugin = SimpleNamespace(
        state_dict_type=StateDictType.SHARDED_STATE_DICT, fsdp_version=2, state_dict_config=None
    )
    PartialState(cpu=True)  # accelerate's logger asks for it
    accelerator = SimpleNamespace(num_processes=RANKS, process_index=rank)
    for model_type in TYPES:
        model = build_tiny(model_type)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with _quiet():
            save_fsdp_model(plugin, accelerator, model, folder / model_type)
    model = build_tiny("qwen3_moe")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    # torchtitan saves the model's tensors at the top, everything else below a key; along the
    # second dimension nothing splits evenly here
    sharded = {
        name: distribute_tensor(tensor, mesh, [Shard(tensor.ndim - 1)])
        for name, tensor in weights.items()
    }
    save_state({**sharded, "optimizer": moments, "train_state": {"step": 3}}, folder / "titan")
    if rank == 0:
        torch.save({n: t.detach() for n, t in weights.items()}, folder / "titan.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with _quiet():
        torch.multiprocessing.spawn(_rank, args=(str(target),), nprocs=RANKS)
