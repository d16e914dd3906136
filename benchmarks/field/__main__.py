"""Apply the verdict's rule on loads to published loads.

`python -m benchmarks.field [--loads FILE] [--json]` prints the result.

`python -m benchmarks.field regenerate [--check]` writes moegeo_cli/verdict/known_loads.toml.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.field.loads import HELD_BACK, SHIPPED, judge_sets, read_loads
from moegeo_cli.errors import UsageError


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.field", description=__doc__)
    parser.add_argument("step", nargs="?", choices=("judge", "regenerate"), default="judge")
    parser.add_argument("--loads", type=Path, help="a table of counts; default: the published ones")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="regenerate: only compare")
    options = parser.parse_args()
    if options.step == "regenerate":
        from benchmarks.field.regeneration import regenerate

        return regenerate(check=options.check)
    try:
        sets = judge_sets(read_loads(options.loads or SHIPPED))
    except UsageError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"sets": sets}, indent=1, ensure_ascii=False))
    else:
        _print(sets, shipped=options.loads is None)
    return 0


def _print(sets: list[dict[str, Any]], *, shipped: bool) -> None:
    print(f"{'severity':9}{'collapse':>9}{'effective':>10}  model, text")
    for row in sets:
        kept = " (held back)" if shipped and row["model"] in HELD_BACK else ""
        print(
            f"{row['severity']:9}{row['collapse']:9.2f}{row['effective_experts']:10.1f}  "
            f"{row['model']}{kept}, {row['text']} ({row['breadth']})"
        )
    for name, own in (
        ("all", sets),
        *((("held back", [r for r in sets if r["model"] in HELD_BACK]),) if shipped else ()),
    ):
        counts = Counter(r["severity"] for r in own)
        words = ", ".join(f"{counts[s]} {s}" for s in ("failing", "watch", "info"))
        print(f"{name}: {len(own)} sets: {words}")


if __name__ == "__main__":
    sys.exit(main())
