"""Read damaged files with every reader: `python -m benchmarks.fuzz --cases 1000000`.

Takes real files (a checkpoint's header, index, config and trainer state, the metadata of a
torch.distributed one, a probe, a stored record with its measurements, both JSON reports),
damages them, and reads them. Allowed are a
value or one of our errors; anything else is kept under --keep and counted. Prints the cases,
the slowest one and how far memory grew. Deterministic by seed; 16 damaged bytes or fewer a case.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.headers import read_header
from moegeo_cli.checkpoints.metadata import read_metadata
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.errors import MoegeoError
from moegeo_cli.probes.reading import read_file
from moegeo_cli.reports import read, read_comparison
from moegeo_cli.store.cache import Store

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "sample_checkpoints" / "healthy-qwen3-moe" / "checkpoint-400"
METADATA = ROOT / "tests" / "faults" / "two-pieces.metadata"
REPORTS = ROOT / "tests" / "reports" / "golden"
TOKENS = [b"null", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"{", b"[", b'"', b"\\u0000",
          b"\xff", b"\x00", b"..", b"/", b"[" * 50, b'{"a":' * 50, b"true", b"[]", b"{}", b"0.5",
          b"\xed\xa0\x80", b"18446744073709551615"]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file to damage, and what reads it."""

    name: str
    path: Path
    read: Callable[[], object]


def prepare(work: Path) -> list[Target]:
    """Real files in a folder of their own, small enough to read a million times."""
    checkpoint = work / "run" / "checkpoint-400"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "trainer_state.json"):
        shutil.copy(SAMPLE / name, checkpoint / name)
    from safetensors.numpy import save_file

    from moegeo_cli.records import CheckpointRecord, from_dict

    tensors = {f"model.layers.{i}.mlp.gate.weight": _numbers(8 * 4).reshape(8, 4) for i in range(3)}
    save_file(tensors, checkpoint / "model.safetensors")
    sharded = work / "sharded"
    sharded.mkdir()
    shutil.copy(SAMPLE / "config.json", sharded / "config.json")
    save_file(tensors, sharded / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(
        tensors, "model-00001-of-00001.safetensors")}  # fmt: skip
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    distributed = work / "distributed"
    distributed.mkdir()
    metadata = METADATA.read_bytes()
    (distributed / ".metadata").write_bytes(metadata)
    for name, spans in read_metadata(distributed / ".metadata").spans.items():
        with (distributed / name).open("wb") as file:
            file.truncate(sum(spans[-1]))
    probe = work / "probe.jsonl"
    probe.write_text('{"input_ids": [1, 2, 3], "domain": "a"}\n{"text": "words", "domain": "b"}\n')
    run, comparison = work / "run.json", work / "comparison.json"
    shutil.copy(REPORTS / "run.json", run)
    shutil.copy(REPORTS / "comparison.json", comparison)
    entry = work / "store" / "key"
    store = Store(work / "store")
    first = json.loads(run.read_text())["checkpoints"][0]
    store.save("key", from_dict(CheckpointRecord, first), {"a": _numbers(4)})
    return [
        Target("header", checkpoint / "model.safetensors",
               lambda: read_header(checkpoint / "model.safetensors")),
        Target("index", sharded / "model.safetensors.index.json", lambda: open_weights(sharded)),
        Target("metadata", distributed / ".metadata", lambda: open_weights(distributed)),
        Target("config", checkpoint / "config.json",
               lambda: describe_architecture(read_config(checkpoint))),
        Target("trainer state", checkpoint / "trainer_state.json",
               lambda: open_run(checkpoint).newest.training),
        Target("probe", probe, lambda: read_file(probe)),
        Target("store", entry / "record.json", lambda: store.load("key")),
        Target("run report", run, lambda: read(run.read_text("utf-8", "surrogateescape"))),
        Target("comparison report", comparison,
               lambda: read_comparison(comparison.read_text("utf-8", "surrogateescape"))),
    ]  # fmt: skip


def _numbers(count: int):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.arange(count, dtype=np.float32)


def damage(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: bytes flipped, cut, doubled, moved, or replaced by trouble."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[place : place + chance.randint(1, 16)]
        elif kind == 2:
            out[place:place] = chance.choice(TOKENS)
        elif kind == 3:
            token = chance.choice(TOKENS)
            out[place : place + len(token)] = token
        elif kind == 4:
            out[place:place] = out[place : place + chance.randint(1, 16)]
        elif chance.random() < 0.1:
            del out[place:]
    return bytes(out)


def fuzz(cases: int, seed: int, keep: Path | None) -> tuple[dict[str, int], list[str], float]:
    """Cases by target, what went wrong, and the slowest case in seconds."""
    counts: dict[str, int] = {}
    wrong: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        targets = prepare(Path(folder))
        whole = {t.name: t.path.read_bytes() for t in targets}
        for target in targets:
            target.read()  # undamaged, it is read
        for case in range(cases):
            target = targets[case % len(targets)]
            chance = random.Random(f"{seed}:{case}")
            data = damage(whole[target.name], chance)
            target.path.write_bytes(data)
            start = time.perf_counter()
            try:
                target.read()
            except MoegeoError:
                pass
            except Exception as error:
                wrong.append(f"{target.name}, case {case}: {type(error).__name__}: {error}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{target.name.replace(' ', '-')}-{case}").write_bytes(data)
            slowest = max(slowest, time.perf_counter() - start)
            counts[target.name] = counts.get(target.name, 0) + 1
            target.path.write_bytes(whole[target.name])
    return counts, wrong, slowest


def peak_mebibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    fuzz(1000, options.seed - 1, None)
    before = peak_mebibytes()
    counts, wrong, slowest = fuzz(options.cases, options.seed, options.keep)
    print(f"{sum(counts.values()):,} cases: " + ", ".join(f"{n} {c:,}" for n, c in counts.items()))
    print(f"wrong: {len(wrong)}; slowest case {slowest:.3f} s; memory {before} MiB after 1,000"
          f" cases, {peak_mebibytes()} MiB at the end")  # fmt: skip
    for line in wrong[:20]:
        print(" ", line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
