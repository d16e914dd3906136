"""docs/how-to/probes.md and docs/reference/probe-files.md against what they describe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from moegeo_cli.geometry.dead import tokens_for_power
from moegeo_cli.probes import Probe
from moegeo_cli.probes.forms.json_lines import MAX_LINE_BYTES
from moegeo_cli.probes.forms.plain_text import PASSAGE_CHARACTERS
from moegeo_cli.probes.rows import MAX_BYTES
from moegeo_cli.verdict.known_loads import even_experts, reach_of

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "".join((DOCS / p).read_text() for p in ("how-to/probes.md", "reference/probe-files.md"))


def test_the_example_is_a_probe(tmp_path: Path, load: Callable[..., Probe]) -> None:
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    path = tmp_path / "example.jsonl"
    path.write_text(block[1])
    assert [s.loss_tokens for s in load(path).sequences] == [32, 3, 2]


def test_the_numbers_hold(load: Callable[..., Probe]) -> None:
    assert f"{load(None).tokens:,} bytes together" in TEXT
    assert f"at most {PASSAGE_CHARACTERS:,} characters" in TEXT
    assert f"up to {MAX_BYTES // 2**20} MiB" in TEXT
    assert f"lines of up to {MAX_LINE_BYTES // 2**20} MiB" in TEXT


def test_what_is_said_of_256_experts_holds() -> None:
    tokens = int(re.search(r"DeepSeek's makes ([\d,]+)", TEXT)[1].replace(",", ""))  # type: ignore[index]
    even = int(re.search(r"even routing would show (\d+) effective", TEXT)[1])  # type: ignore[index]
    assert round(even_experts(256, 8 * tokens, 40.0)) == even
    assert reach_of(100.0, even, 256, 8) is not None
    assert f"about {round(tokens_for_power(256, 8, 58), -3):,} tokens would tell" in TEXT


def test_the_table_of_sizes_holds() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 4
    for experts, chosen, routers, tokens in rows:
        needed = tokens_for_power(int(experts), int(chosen), int(routers))
        assert abs(int(tokens.replace(",", "")) - needed) < 0.02 * needed
