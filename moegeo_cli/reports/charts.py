"""Charts of one line: a trend over checkpoints, a heat strip over experts; and their signs.

A terminal that cannot show block characters gets plain ones of the same meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_PLAIN = {
    "×": "x", "²": "^2", "→": "->", "…": "...", "–": "-", "—": "-", "·": "|", "±": "+/-",
    "≥": ">=", "≤": "<=", "≠": "!=", "“": '"', "”": '"', "’": "'", "−": "-",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The signs that charts and tables are made of; `blocks` from low to high."""

    blocks: str = "▁▂▃▄▅▆▇█"
    none: str = "·"
    dash: str = "–"
    bullet: str = "•"
    arrow: str = "→"
    plain: bool = False

    def text(self, text: str) -> str:
        """The text in the characters that the terminal can show."""
        if not self.plain or text.isascii():
            return text
        for sign, words in _PLAIN.items():
            text = text.replace(sign, words)
        return text.encode("ascii", "replace").decode()


UNICODE = Glyphs()
ASCII = Glyphs(blocks=".:-=+*#@", none="_", dash="-", bullet="*", arrow="->", plain=True)


def sparkline(
    values: Sequence[float | None],
    glyphs: Glyphs = UNICODE,
    *,
    width: int = 24,
    floor: float = 0.0,
    ends: tuple[float, float] | None = None,
) -> str:
    """The values as one row of blocks, from lowest to highest; unknown ones as a dash.

    Args:
        values: in order; where they are more than `width`, an even choice that keeps both ends.
        glyphs: the signs to draw with.
        width: most characters.
        floor: least range that the full height stands for, so that noise does not look steep.
        ends: the values of the lowest and the full block, for charts that share a scale.
    """
    if len(values) > width > 1:
        last = len(values) - 1
        values = [values[round(i * last / (width - 1))] for i in range(width)]
    known = [v for v in values if v is not None]
    if not known:
        return glyphs.dash * len(values)
    low, high = ends or (min(known), max(known))
    span = max(high - low, floor)
    start = (low + high - span) / 2
    top = len(glyphs.blocks) - 1

    def sign(value: float | None) -> str:
        if value is None:
            return glyphs.dash
        share = (value - start) / span if span > 0 else 0.5
        return glyphs.blocks[min(max(int(share * top + 0.499), 0), top)]

    return "".join(sign(v) for v in values)


def heat_strip(
    load: Sequence[float | None], glyphs: Glyphs = UNICODE, *, width: int = 32
) -> tuple[str, list[float | None]]:
    """Load per expert against the fair share, a block each: middle is fair, full is twice that.

    An expert without any load shows as a dot. More experts than `width` are sorted by load
    first, and every block is the mean of its neighbours.

    Returns:
        The blocks, and beside each the multiple of the fair share that it stands for.
    """
    experts = len(load)
    ratios: list[float | None] = [None if v is None else v * experts for v in load]
    if experts > width:
        known = sorted((r for r in ratios if r is not None), reverse=True)
        edges = [round(i * len(known) / width) for i in range(width + 1)]
        ratios = [sum(known[a:b]) / (b - a) if b > a else None for a, b in pairwise(edges)]
        ratios = [r for r in ratios if r is not None]
    top = len(glyphs.blocks)

    def sign(ratio: float | None) -> str:
        if ratio is None:
            return glyphs.dash
        if ratio <= 0:
            return glyphs.none
        return glyphs.blocks[min(max(round(ratio * top / 2), 1), top) - 1]

    return "".join(sign(r) for r in ratios), ratios
