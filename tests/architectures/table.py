"""Write the table of docs/reference/architectures.md: `python -m tests.architectures.table`.

Each row says what was found in a tiny checkpoint of the type; the test of the type holds the
document to it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from moegeo_cli import analyze
from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.records import RunRecord

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"
START, END = "<!-- table -->\n", "<!-- end of table -->"
HEAD = "| model type | router | logits to scores | how K are chosen | measured | not measured |\n"
LENGTHS = [5 + (7 * i) % 19 for i in range(8)]
# Null in a small probe of one checkpoint whatever the type.
ALWAYS = {
    "dead_experts", "heterogeneity_conditional", "bias_spread", "bias_changes", "near_ties_centred",
}  # fmt: skip


def write_probe(path: Path) -> list[list[int]]:
    """Eight sequences of unequal length."""
    generator = np.random.default_rng(0)
    ids = [[int(v) for v in generator.integers(3, 64, n)] for n in LENGTHS]
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    return ids


def row(model_type: str, folder: Path, run: RunRecord) -> str:
    """A type's line of the table, of what its checkpoint gave."""
    known = describe_architecture(read_config(folder))
    selection = known.selection
    rule = ["top K"]
    if selection.bias:
        rule.append("bias" + (" on logits" if selection.bias_on == "logits" else ""))
    if selection.groups:
        rule.append("groups")
    if known.hash_layers:
        rule.append("hash in some layers")
    if known.zero_experts:
        rule.append("zero experts")
    [checkpoint] = run.checkpoints
    coverage = checkpoint.coverage
    hashed = [x.layer for x in checkpoint.layers if x.layer in known.hash_layers]
    gaps = {
        name
        for layer in checkpoint.layers
        if layer.layer not in hashed
        for name, metric in layer.metrics.items()
        if metric.value is None and name not in ALWAYS and not name.startswith("fhs")
    }
    left = sorted(gaps) + (["all but dispatch in hash layers"] if hashed else [])
    share = f"{coverage.routers_measured} of {coverage.routers_found}"
    return (
        f"| {model_type} | `{known.router_path}` | {known.scoring} | {', '.join(rule)} | {share} "
        f"| {', '.join(left) or '–'} |"
    )


def refused_row(model_type: str, reason: str) -> str:
    """The line of a type that is refused."""
    return f"| {model_type} | | | | refused | {reason} |"


def main() -> None:
    from tests.architectures.test_every_type import PAIRS, REFUSED, TOWERS, TYPES
    from tests.architectures.zoo import save_tiny

    rows = []
    for model_type in sorted((*TYPES, *TOWERS, *PAIRS, *REFUSED)):
        with tempfile.TemporaryDirectory() as work:
            folder, probe = Path(work, "model"), Path(work, "probe.jsonl")
            save_tiny(model_type, folder)
            write_probe(probe)
            try:
                run = analyze(folder, probe=probe, baseline="none", cache=False)
            except UnsupportedArchitectureError as error:
                rows.append(refused_row(model_type, error.message.partition(": ")[2]))
            else:
                rows.append(row(model_type, folder, run))
    page = PAGE.read_text()
    before, after = page.partition(START)[0], page.partition(END)[2]
    table = HEAD + "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    PAGE.write_text(before + START + table + END + after)


if __name__ == "__main__":
    main()
