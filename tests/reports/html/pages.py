"""One page of each kind: records of tests and of samples, and a hostile one."""

from __future__ import annotations

import dataclasses
import gzip
import html.parser
import random
from pathlib import Path
from typing import Any

from moegeo_cli.records import CheckpointRecord, RunRecord
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports.json_report import read_any
from tests.reports.large_run import large_run

RECORDED = Path(__file__).parents[1] / "recorded"
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "'\"><svg onload=alert(1)>{{7*7}}{% raw %}\u2028\u202e\x00\x1b[31m&lt;b&gt;javascript:alert(1)"
)
HOSTILE_MARK = "document.title="


def recorded(name: str) -> AnyRecord:
    """A record of a sample, as `moegeo NAME sample_checkpoints/healthy-qwen3-moe` wrote it."""
    return read_any(gzip.decompress((RECORDED / f"healthy-qwen3-moe.{name}.json.gz").read_bytes()))


def twenty_checkpoints() -> RunRecord:
    """48 × 128 × 20, each load moved at random so that nothing repeats."""
    run, chance = large_run(), random.Random(0)
    newest = run.newest

    def moved(step: int) -> CheckpointRecord:
        layers = tuple(
            dataclasses.replace(
                layer,
                load=tuple((share or 0) * chance.uniform(0.5, 2) / 2 for share in layer.load or ()),
                domain_load={
                    d: tuple(chance.random() / layer.experts for _ in range(layer.experts))
                    for d in ("code", "prose", "maths", "other")
                },
                fisher_trace=tuple(chance.random() for _ in range(layer.experts)),
            )
            for layer in newest.layers
        )
        return dataclasses.replace(newest, step=step, path=f"checkpoint-{step}", layers=layers)

    return dataclasses.replace(run, checkpoints=tuple(moved(100 * i) for i in range(20)))


def hostile(record: Any) -> Any:
    """A record in which every text that a checkpoint could have written is hostile."""
    if isinstance(record, str):
        return HOSTILE
    if isinstance(record, dict):
        return {k: _keep(k, v) for k, v in record.items()}
    if isinstance(record, tuple | list):
        return type(record)(hostile(v) for v in record)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        changed = {
            f.name: _keep(f.name, getattr(record, f.name)) for f in dataclasses.fields(record)
        }
        return dataclasses.replace(record, **changed)
    return record


# Words that moegeo itself chooses among.
_OWN = {
    "severity", "axis", "outcome", "state", "status", "policy", "routing", "performance",
    "healthier", "matched_by", "action", "choice", "pairs", "hidden", "usage", "grade", "kind",
    "run",
}  # fmt: skip


def _keep(name: str, value: Any) -> Any:
    return value if name in _OWN and isinstance(value, str) else hostile(value)


class Reader(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, and its text."""

    VOID = frozenset({"meta", "input", "br", "hr", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
