"""Analyze a checkpoint that is larger than its memory bound: `python -m benchmarks.stream`.

Writes a Mixtral of 2.1 GB (random weights, bfloat16) into a folder, then replays a probe once
with the whole model in memory and once with its layers streamed, each in a process of its own,
and prints the streamed replay's memory term by term beside its measured peak, the seconds of
both, and how far their numbers lie apart. `plan` prints the terms of published models by their
shapes alone: files with real headers and no data.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, WIDTH, INNER, EXPERTS, VOCABULARY = 20, 1024, 2048, 8, 2048
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
    "architectures": ["MixtralForCausalLM"], "dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "vocab_size": 129280, "routed_scaling_factor": 2.5,
    "norm_topk_prob": True, "architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16",
}  # fmt: skip


def write_checkpoint(folder: Path) -> None:
    """The checkpoint that is measured, in shards."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=16, num_key_value_heads=8,
        num_local_experts=EXPERTS, num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    MixtralForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")


def write_headers(folder: Path, config: dict[str, Any]) -> None:
    """A checkpoint of the config's shapes whose file has a header and no data."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    names = ("w1", "w3", "w2") if config["model_type"] == "mixtral" else (
        "gate_proj", "up_proj", "down_proj"
    )  # fmt: skip
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            shapes[name] = list(tensor.shape)
            continue
        path = name.rpartition(".")[0].replace(
            "mlp", "block_sparse_moe" if names[0] == "w1" else "mlp"
        )
        experts, rows, columns = tensor.shape
        for e in range(experts):
            if name.endswith("down_proj"):
                shapes[f"{path}.{e}.{names[2]}.weight"] = [rows, columns]
            else:
                for own in names[:2]:
                    shapes[f"{path}.{e}.{own}.weight"] = [rows // 2, columns]
    if names[0] == "w1":
        shapes = {n.replace(".mlp.gate.", ".block_sparse_moe.gate."): s for n, s in shapes.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)  # a sparse file: no data is written


def replay_once(folder: Path, streamed: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One replay, in this process."""
    import torch

    from benchmarks.models import build_probe
    from moegeo_cli.checkpoints.checkpoint import Checkpoint
    from moegeo_cli.geometry.resample import group_sequences
    from moegeo_cli.measuring.measurer import Measurer
    from moegeo_cli.settings import Settings

    checkpoint = Checkpoint(folder)
    probe = build_probe(options.tokens)
    settings = Settings(stream=streamed, memory=options.memory if streamed else None)
    groups_S = group_sequences(len(probe.sequences), 0)
    measurer = Measurer(checkpoint.architecture, checkpoint.config, probe, groups_S, settings)
    if options.eager and not streamed:
        model = measurer.load(checkpoint)
        model.set_experts_implementation("eager")  # type: ignore[operator]
    start = time.perf_counter()
    if options.eager and not streamed:
        arrays = measurer.measure_model(model, checkpoint)
    else:
        arrays = measurer.measure(checkpoint)
    seconds = time.perf_counter() - start
    print(measurer.memory or "whole model", file=sys.stderr)
    fishers = [r.fishers["empirical", "position"].total_ED for r in arrays.routers]
    np.save(folder / f"{'streamed' if streamed else 'whole'}.npy", np.stack(fishers))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak": peak, "loss": float(np.sum(arrays.loss_S)),
            "threads": torch.get_num_threads()}  # fmt: skip


def compare(options: argparse.Namespace) -> None:
    """Both replays beside each other."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").is_file():
        write = "import sys; from pathlib import Path; from benchmarks import stream; "
        write += "stream.write_checkpoint(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", write, str(folder)], check=True)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} shards, "
          f"{options.tokens:,} tokens, bfloat16")  # fmt: skip
    results = {}
    for way in ("whole", "streamed"):
        command = [sys.executable, "-m", "benchmarks.stream", way, "--folder", str(folder)]
        command += ["--tokens", str(options.tokens), *(["--eager"] if options.eager else [])]
        command += ["--memory", str(options.memory)] if options.memory else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[way] = json.loads(done.stdout)
        print(f"  {way:9} {results[way]['seconds']:6.1f} s, peak {results[way]['peak']:,.0f} MiB")
        print(f"    {done.stderr.strip().splitlines()[-1]}")
    one, other = (np.load(folder / f"{way}.npy") for way in ("whole", "streamed"))
    apart = float(np.abs(one - other).max() / np.abs(one).max())
    same = "bit for bit" if np.array_equal(one, other) else f"within {apart:.1e} of the largest"
    losses = [results[way]["loss"] for way in ("whole", "streamed")]
    print(f"  empirical Fisher of {one.shape[0]} routers: equal {same};"
          f" loss {losses[0]:.6f} and {losses[1]:.6f}")  # fmt: skip


def plan(options: argparse.Namespace) -> None:
    """The terms of published models, by their shapes."""
    import torch

    from moegeo_cli.checkpoints.checkpoint import Checkpoint
    from moegeo_cli.models.memory.streamed import plan_stream, say_bytes
    from moegeo_cli.models.streaming.layer_stream import LayerStream

    for config in (MIXTRAL, DEEPSEEK):
        with tempfile.TemporaryDirectory() as folder:
            write_headers(Path(folder), config)
            stream = LayerStream(Checkpoint(Path(folder)), torch.device("cpu"), torch.bfloat16)
            stream.attach(Checkpoint(Path(folder)))
            sizes = stream.sizes(0)
            made = plan_stream(sizes, options.tokens, 256, None, 400 * 2**20, options.free)
            print(f"{config['model_type']}: {stream.files.index.size / 1e9:,.0f} GB, largest layer "
                  f"{say_bytes(sizes.layer)}, of it {say_bytes(sizes.shared)} without experts, "
                  f"one expert {say_bytes(sizes.expert)}")  # fmt: skip
            for name, count in made.terms.items():
                print(f"    {name:12} {say_bytes(count):>12}")
            print(f"    {'at most':12} {say_bytes(made.bound):>12}, sums apart; {options.tokens:,} "
                  f"tokens, {made.positions:,} a batch")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="compare",
                        choices=("compare", "whole", "streamed", "plan"))  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path("large-checkpoint"))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--memory", type=int, help="bytes to stay within")
    parser.add_argument("--free", type=int, default=16 * 2**30, help="bytes free, for the plan")
    parser.add_argument("--eager", action="store_true", help="the whole model by the same kernel")
    options = parser.parse_args()
    if options.what == "compare":
        compare(options)
    elif options.what == "plan":
        plan(options)
    else:
        print(json.dumps(replay_once(options.folder, options.what == "streamed", options)))


if __name__ == "__main__":
    main()
