"""What every command prints today, written to a folder: a change that moves no number leaves it so.

    git stash; python -m tests.frozen BEFORE; git stash pop
    python -m tests.frozen AFTER; diff -r BEFORE AFTER

One thread (OMP_NUM_THREADS=1) both times: the number of threads moves the last digits of sums.

Samples, and one tiny random checkpoint of every model type, saved anew from its seed: a few
minutes. Exit codes and messages are kept beside the payloads.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moegeo_cli.cli.app import run
from tests.architectures.table import write_probe
from tests.architectures.test_every_type import PAIRS, REFUSED, TOWERS, TYPES
from tests.architectures.zoo import save_tiny

ROOT = Path(__file__).parents[1]
SAMPLES = Path("sample_checkpoints")  # by a name that no checkout changes
RUNS = ("healthy-qwen3-moe", "unbalanced-mixtral", "balanced-glm4-moe", "misaligned-qwen3-moe")
SHORT = ("--max-tokens", "2048", "--no-cache")
FORMATS = ("json", "markdown", "csv", "junit", "github", "rich")


def main() -> None:
    """Write all payloads to the folder named."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments in _calls(Path(scratch)):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run([str(a) for a in arguments])
            # What a process was measured to hold is no number of moegeo's.
            said = re.sub(r"  memory: at most .*\n", "", err.getvalue())
            text = f"exit code {code}\n{said}\n{out.getvalue()}"
            (folder / name).write_text(text.replace(scratch, "SCRATCH"), encoding="utf-8")
            print(name, code, flush=True)


def _calls(scratch: Path) -> Iterator[tuple[str, list[object]]]:
    """A file's name and a command's arguments, one after the other."""
    for name in RUNS:
        path = SAMPLES / name
        for kind in FORMATS:
            yield f"{name}.analyze.{kind}", ["analyze", path, *SHORT, "--format", kind]
        yield f"{name}.check", ["check", path, "--format", "json", "--no-cache"]
        yield f"{name}.experts", ["experts", path, "--format", "json", *SHORT]
        yield f"{name}.routing", ["routing", path, "--format", "json", *SHORT]
        yield f"{name}.invariance", ["invariance", path, "--format", "json", *SHORT[:2]]
        yield f"{name}.inspect", ["inspect", path, "--format", "json"]
    pair = [SAMPLES / name for name in RUNS[:2]]
    for kind in FORMATS:
        if kind != "junit":
            yield f"samples.compare.{kind}", ["compare", *pair, *SHORT, "--format", kind]
    probe = scratch / "probe.jsonl"
    write_probe(probe)
    for model_type in (*TYPES, *TOWERS, *PAIRS, *REFUSED):
        path = scratch / model_type.replace(" + ", "-with-")
        with contextlib.suppress(Exception):  # a type without a small form of its own
            save_tiny(model_type, path)
        given = ["--probe", probe, "--no-cache", "--format", "json"]
        yield f"{path.name}.analyze", ["analyze", path, *given]
        yield f"{path.name}.check", ["check", path, "--no-cache", "--format", "json"]
        yield f"{path.name}.inspect", ["inspect", path, "--format", "json"]
        if model_type in ("qwen3_moe", "deepseek_v3", "gpt_oss", "switch_transformers"):
            yield f"{path.name}.experts", ["experts", path, *given]
            yield f"{path.name}.routing", ["routing", path, *given]


if __name__ == "__main__":
    main()
