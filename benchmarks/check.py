"""Measure time and memory of `moegeo check`, each call in a process of its own.

    python -m benchmarks.check whole      # 2 GB of random weights, all of it, beside a bare SHA-256
    python -m benchmarks.check unchanged  # a run of 50 checkpoints that are kept, and one more
    python -m benchmarks.check layouts    # --quick on sparse files of 0.06 to 1.3 TB

Sparse files have every tensor's name, type and place; their values are zeros that take no room on
the disk, so that reading them costs no disk time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHARD = 5 * 10**9
CHUNK = 1 << 20
Tensors = Iterator[tuple[str, tuple[int, ...]]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.check")
    parser.add_argument("what", choices=("whole", "unchanged", "layouts"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        {"whole": whole, "unchanged": unchanged, "layouts": layouts}[options.what](
            Path(work), options.rounds
        )


def whole(work: Path, rounds: int) -> None:
    """Every byte of a 2 GB checkpoint: `check` and a bare SHA-256 in turn."""
    _apart(_save_model, work / "m")
    size = sum(f.stat().st_size for f in (work / "m").glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB, {rounds} rounds, interleaved, medians")
    seconds: dict[str, list[float]] = {"check": [], "check --quick": [], "sha256": []}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name in seconds:
            taken, peak = _apart(
                _hash if name == "sha256" else _check, work / "m", name == "check --quick"
            )
            seconds[name].append(taken)
            peaks[name] = max(peak, peaks.get(name, 0.0))
    bare = statistics.median(seconds["sha256"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(
            f"{name:14} {middle:7.2f} s ({middle / bare:.2f} x sha256)  peak {peaks[name]:,.0f} MB"
        )


def _save_model(path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=32_000, hidden_size=1024, num_hidden_layers=10, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, num_experts=64, num_experts_per_tok=8,
        moe_intermediate_size=512, intermediate_size=2048, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)


def unchanged(work: Path, rounds: int) -> None:
    """What is kept is not read again."""
    import torch
    from safetensors.torch import load_file, save_file

    source = Path(__file__).parents[1] / "sample_checkpoints" / "healthy-qwen3-moe"
    run = work / "run"
    for step in range(0, 50):
        path = Path(shutil.copytree(source / "checkpoint-400", run / f"checkpoint-{step}"))
        state = load_file(path / "model.safetensors")
        state = {n: t + 1e-3 * step * torch.ones_like(t) for n, t in state.items()}
        save_file(state, path / "model.safetensors", {"format": "pt"})
    cold, _ = _apart(_check, run, False, True)
    again = [_apart(_check, run, False, True)[0] for _ in range(rounds)]
    shutil.copytree(run / "checkpoint-49", run / "checkpoint-50")
    more, _ = _apart(_check, run, False, True)
    print(f"50 checkpoints: first {cold:.2f} s, unchanged {statistics.median(again):.2f} s, ")
    print(f"with one more {more:.2f} s")


def layouts(work: Path, rounds: int) -> None:
    """Headers of published layouts, `--quick`."""
    for name, (config, tensors) in LAYOUTS.items():
        folder = work / name
        size, files, count = write_sparse(folder, config, tensors())
        taken, peaks = zip(
            *(_apart(_check, folder, True) for _ in range(max(1, rounds // 2))), strict=True
        )
        print(
            f"{name:22} {size / 1e12:5.2f} TB, {files:3} files, {count:6,} tensors: "
            f"{statistics.median(taken):6.1f} s, peak {max(peaks):,.0f} MB"
        )
        shutil.rmtree(folder)


def _apart(function: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Seconds of a call in a fresh process, its imports included, and the peak in MB."""
    context = multiprocessing.get_context("spawn")
    told, mine = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_report, args=(mine, function, *arguments))
    process.start()
    peak = told.recv()
    process.join()
    return time.perf_counter() - start, peak


def _report(pipe: Any, function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)
    # VmHWM is of this process since it began; ru_maxrss would hold its parent's too.
    status = Path("/proc/self/status").read_text()
    pipe.send(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def _check(path: Path, quick: bool, cache: bool = False) -> None:
    from moegeo_cli import check

    check(path, quick=quick, cache=cache)


def _hash(path: Path, quick: bool) -> None:
    for file in sorted(path.glob("*.safetensors")):
        digest = hashlib.sha256()
        with file.open("rb") as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)


def write_sparse(folder: Path, config: dict[str, Any], tensors: Tensors) -> tuple[int, int, int]:
    """A checkpoint in bfloat16 whose values are holes; gives bytes, files and tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = total = 0
    for name, shape in tensors:
        size = 2
        for extent in shape:
            size *= extent
        if held + size > SHARD and shards[-1]:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held, total = held + size, total + size
    where = {}
    for place, shard in enumerate(shards, 1):
        file = f"model-{place:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shard.items():
            start, end = end, end + 2
            for extent in shape:
                end = start + (end - start) * extent
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            where[name] = file
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            out.truncate(8 + len(raw) + end)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, len(shards), len(where)


def _qwen3(layers: int, hidden: int, inner: int, experts: int, heads: int) -> Tensors:
    yield "model.embed_tokens.weight", (151_936, hidden)
    for i in range(layers):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", heads * 128), ("k", 4 * 128), ("v", 4 * 128)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, heads * 128)
        yield f"{at}.self_attn.q_norm.weight", (128,)
        yield f"{at}.self_attn.k_norm.weight", (128,)
        yield f"{at}.mlp.gate.weight", (experts, hidden)
        for e in range(experts):
            yield f"{at}.mlp.experts.{e}.gate_proj.weight", (inner, hidden)
            yield f"{at}.mlp.experts.{e}.up_proj.weight", (inner, hidden)
            yield f"{at}.mlp.experts.{e}.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (151_936, hidden)


def _deepseek() -> Tensors:
    yield "model.embed_tokens.weight", (129_280, 7168)
    for i in range(61):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", (7168,)
        yield f"{at}.post_attention_layernorm.weight", (7168,)
        yield f"{at}.self_attn.q_a_proj.weight", (1536, 7168)
        yield f"{at}.self_attn.q_a_layernorm.weight", (1536,)
        yield f"{at}.self_attn.q_b_proj.weight", (24_576, 1536)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (576, 7168)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (512,)
        yield f"{at}.self_attn.kv_b_proj.weight", (32_768, 512)
        yield f"{at}.self_attn.o_proj.weight", (7168, 16_384)
        parts = ["mlp."] if i < 3 else ["mlp.shared_experts."]
        if i >= 3:
            yield f"{at}.mlp.gate.weight", (256, 7168)
            yield f"{at}.mlp.gate.e_score_correction_bias", (256,)
            parts += [f"mlp.experts.{e}." for e in range(256)]
        inner = 18_432 if i < 3 else 2048
        for part in parts:
            yield f"{at}.{part}gate_proj.weight", (inner, 7168)
            yield f"{at}.{part}up_proj.weight", (inner, 7168)
            yield f"{at}.{part}down_proj.weight", (7168, inner)
    yield "model.norm.weight", (7168,)
    yield "lm_head.weight", (129_280, 7168)


_QWEN3 = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 151_936,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "head_dim": 128,
    "num_key_value_heads": 4,
}  # fmt: skip
# Shapes of the published configs.
LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[], Tensors]]] = {
    "Qwen3-30B-A3B": (
        {**_QWEN3, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
         "moe_intermediate_size": 768, "intermediate_size": 6144},
        lambda: _qwen3(48, 2048, 768, 128, 32),
    ),
    "Qwen3-235B-A22B": (
        {**_QWEN3, "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64,
         "moe_intermediate_size": 1536, "intermediate_size": 12_288},
        lambda: _qwen3(94, 4096, 1536, 128, 64),
    ),
    "DeepSeek-V3 (bfloat16)": (
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
         "vocab_size": 129_280, "hidden_size": 7168, "num_hidden_layers": 61,
         "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
         "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
         "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "intermediate_size": 18_432,
         "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
         "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128,
         "qk_nope_head_dim": 128},
        _deepseek,
    ),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
