"""Write the table of names of docs/reference/layouts.md: `python -m tests.checkpoints.names_table`.

Each row is made and opened: folders with a tiny checkpoint, and what moegeo says of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.own import open_own_run
from moegeo_cli.errors import MoegeoError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "layouts.md"
START, END = "<!-- names -->\n", "<!-- end of names -->"
HEAD = "| written by | in the folder that is given | read as |\n|---|---|---|\n"
# writer, the checkpoints in the folder, whether they are files of a model of the user's own
ROWS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Trainer", ("checkpoint-100", "checkpoint-200"), False),
    ("Megatron-Bridge and others", ("iter_0000100", "iter_0000200"), False),
    ("OLMo", ("step1000-tokens4B", "step2000-tokens8B"), False),
    ("OLMo, stages", ("stage1-step1000-tokens4B", "stage2-step500-tokens2B"), False),
    ("by epoch", ("epoch-9", "epoch-10"), False),
    ("by date", ("20241105", "20241106"), False),
    ("ms-swift", ("v0-20241105-101112/checkpoint-100",), False),
    (
        "ms-swift, two runs",
        ("v0-20241105-101112/checkpoint-100", "v1-20241106-090000/checkpoint-100"),
        False,
    ),
    ("verl", ("global_step_10/actor/huggingface", "global_step_20/actor/huggingface"), False),
    ("prime-rl", ("weights/step_10", "weights/step_20"), False),
    ("NeMo AutoModel", ("checkpoints/epoch_0_step_10/model/consolidated",), False),
    (
        "accelerate `save_state`, with `--config`",
        ("checkpoints/checkpoint_0", "checkpoints/checkpoint_1"),
        False,
    ),
    (
        "Lightning, with `--model`",
        ("version_0/checkpoints/epoch=0-step=10", "version_0/checkpoints/epoch=1-step=20"),
        True,
    ),
    ("Composer, with `--model`", ("ep0-ba10-rank0", "ep1-ba20-rank0"), True),
    ("own files, with `--model`", ("moe_768_step100", "moe_768_step200"), True),
    ("own files without a word", ("moe_768", "moe_1024"), True),
)


def table() -> str:
    """The table as it stands in the page."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def rows() -> Iterator[tuple[str, str, str]]:
    """Each layout, made and opened."""
    for writer, places, own in ROWS:
        with tempfile.TemporaryDirectory() as made:
            top = Path(made) / "RUN"
            for place in places:
                bare = "--config" in writer
                _write(top / f"{place}.safetensors" if own else top / place / "model.safetensors")
                if not own and not bare:
                    (top / place / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
            (Path(made) / "config.json").write_text('{"model_type": "mixtral"}')
            shown = ", ".join(f"`{place}`" for place in places)
            given = Path(made) if "--config" in writer else None
            yield writer, shown, _said(top, given, own=own)


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.zeros(1, np.float32)}, path)


def _said(top: Path, given: Path | None, *, own: bool) -> str:
    try:
        run = open_own_run(top) if own else open_run(top, given)
    except MoegeoError as error:
        words = error.message.replace(f" in {top}", "").removeprefix(f"{top} holds ")
        return f"listed: {words}"
    steps = ", ".join(str(c.step) for c in run.checkpoints)
    return f"a run: step {steps}"


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"wrote the table of {PAGE}")
