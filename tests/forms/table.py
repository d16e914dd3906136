"""Write the table of forms of docs/reference/layouts.md: `python -m tests.forms.table`.

Each row is what the reader plans for a checkpoint of that form: one that the form's own writer
made, or the names, dtypes and shapes of one. `tests/forms/test_table.py` holds the document to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.checkpoints.quantised.files import Files
from moegeo_cli.checkpoints.quantised.forms.unread import UNREAD
from moegeo_cli.checkpoints.quantised.plan import Plan, plan_quantised
from moegeo_cli.checkpoints.quantised.settings import read_settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "layouts.md"
WRITTEN = Path(__file__).parent / "files"
START, END = "<!-- forms -->\n", "<!-- end of forms -->"
HEAD = "| form | recognised by | read | with `--stream` |\n|---|---|---|---|\n"
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
# name -> dtype and shape, of forms that no writer's files are here of.
HEADERS: Mapping[str, Tensors] = {
    "fp8-tensor": {"a.weight": ("F8_E4M3", (32, 32)), "a.weight_scale": ("F32", ())},
    "fp8-row": {"a.weight": ("F8_E4M3", (32, 32)), "a.weight_scale": ("F32", (32, 1))},
    "fp8-block": {"a.weight": ("F8_E4M3", (256, 256)), "a.weight_scale_inv": ("F32", (2, 2))},
    "fp8-experts": {
        "e.up_proj": ("F8_E4M3", (3, 256, 256)), "e.up_proj_scale_inv": ("F32", (3, 2, 2)),
    },
    "int8-row": {"a.weight": ("I8", (32, 32)), "a.weight_scale": ("F32", (32, 1))},
    "nvfp4-modelopt": {
        "a.weight": ("U8", (4, 16)), "a.weight_scale": ("F8_E4M3", (4, 2)),
        "a.weight_scale_2": ("F32", ()),
    },
    "mxfp4": {"a.weight_packed": ("U8", (4, 16)), "a.weight_scale": ("U8", (4, 1))},
    "mxfp4-experts": {
        "e.up_proj_blocks": ("U8", (3, 6, 2, 16)), "e.up_proj_scales": ("U8", (3, 6, 2)),
    },
    **{
        f"gptq-{bits}": {
            "a.qweight": ("I32", (2 * bits, 32)), "a.qzeros": ("I32", (1, bits)),
            "a.scales": ("F16", (1, 32)),
        }
        for bits in (2, 3, 4, 8)
    },
    "awq": {
        "a.qweight": ("I32", (16, 3)), "a.qzeros": ("I32", (2, 3)), "a.scales": ("F16", (2, 24)),
    },
    "mlx": {"a.weight": ("U32", (32, 4)), "a.scales": ("F16", (32, 1))},
    "bitsandbytes-old": {
        "a.weight": ("U8", (512, 1)), "a.weight.absmax": ("F32", (16,)),
        "a.weight.quant_map": ("F32", (16,)),
    },
    "torchao-int4": {"a._weight_qdata": ("I32", (32, 4)), "a._weight_scale": ("F32", (32, 1))},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `form` is the formula that makes the values, None where refused."""

    scheme: str
    told: str
    form: str | None
    by_row: bool = False

    @property
    def pieces(self) -> str:
        """What a streamed replay reads of it together."""
        if self.form is None:
            return ""
        return "some experts at a time" if self.by_row else "a tensor at a time"


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], encoding="utf-8")


def table() -> str:
    """The table as it stands in the page."""
    return HEAD + "".join(
        f"| {row.scheme} | {row.told} | {'yes' if row.form else 'refused'} | {row.pieces} |\n"
        for row in rows()
    )


def rows() -> list[Row]:
    """What is read, then what is refused, each by name."""
    found = [_row(plan) for plan in _plans()]
    return sorted(set(found), key=lambda row: (row.form is None, row.scheme.lower(), row.told))


def _plans() -> Iterator[tuple[Files, Plan]]:
    for folder in sorted(p for p in WRITTEN.iterdir() if p.is_dir() and p.name != "plain"):
        index = open_weights(folder)
        infos = {name: index.info(name) for name in index.names()}
        files = Files(infos, read_settings(read_config(folder), folder), index.tensor)
        yield files, plan_quantised(files)
    samples = [*HEADERS.values()]
    for pattern, _ in UNREAD:  # the first name that each mark fits
        name = re.sub(r"[\\$^]", "", re.sub(r"\(([^|)]*)[^)]*\)", r"\1", pattern.pattern))
        samples.append({f"a{name}": ("I32", (32, 4))})
    for sample in samples:
        infos = {name: TensorInfo(*about, 0, 0) for name, about in sample.items()}
        files = Files(infos, {}, _nothing)
        yield files, plan_quantised(files)


def _row(found: tuple[Files, Plan]) -> Row:
    files, plan = found
    if plan.problems:
        name, words = plan.problems[0]
        return Row(words, _told(files, [name], dtype=False), None)
    recipe = next(iter(plan.recipes.values()))
    return Row(recipe.scheme, _told(files, recipe.parts.values()), recipe.form, recipe.by_row)


def _told(files: Files, names: Iterable[str], *, dtype: bool = True) -> str:
    """What names end with, from `weight` on; of the first its dtype."""
    words = []
    for name in names:
        at = name.find("weight.")
        last = name[at:] if at >= 0 else name.rpartition(".")[2]
        words.append(f"`{last}`" + (f" ({files.dtype(name)})" if dtype and not words else ""))
    return ", ".join(words)


def _nothing(name: str) -> object:
    raise KeyError(f"{name}: a header has no values")


if __name__ == "__main__":
    write()
    print(f"wrote the table of {PAGE}")
