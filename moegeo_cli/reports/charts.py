"""One-line charts: a trend over checkpoints, and a heat strip over experts.

A terminal that cannot show block characters gets ASCII characters with the same meaning.
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
    """The characters that charts and tables are made of; `blocks` go from low to high."""

    blocks: str = "▁▂▃▄▅▆▇█"
    none: str = "·"
    dash: str = "–"
    bullet: str = "•"
    arrow: str = "→"
    plain: bool = False

    def text(self, text: str) -> str:
        """The text, in characters that the terminal can show."""
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
    """The values as one row of blocks, from lowest to highest; unknown values are a dash.

    Args:
        values: the values in order. If there are more than `width`, some are chosen evenly, with
            both ends.
        glyphs: the characters to draw with.
        width: maximum number of characters.
        floor: minimum range of the full height, so that noise does not look steep.
        ends: the values of the lowest and the highest block, for charts that share a scale.
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
    """Load per expert relative to the fair share, one block per expert.

    The middle block is the fair share, the full block is twice that or more. An expert without
    load is a dot. If there are more experts than `width`, they are sorted by load, and each block
    is the mean of several experts.

    Returns:
        The blocks, and for each block the load as a multiple of the fair share.
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
