"""Write known_loads.toml from the published counts, reproducibly.

The limit of a kind of text is two thirds of the lowest `reach` that a layer of any known-good model
shows on it. Quantiles are those of a model's layers over all its texts of that kind.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from benchmarks.field.loads import HELD_BACK, even_of, read_loads
from moegeo_cli.verdict.known_loads import MIXTURE, NARROW, effective_experts, forget, reach_of
from moegeo_cli.verdict.thresholds import FOLDER

PATH = FOLDER / "known_loads.toml"
STEPS = 21  # quantiles from 0 to 1
SHARE = 2.0 / 3.0
HEAD = """\
# Written by `python -m benchmarks.field regenerate`; docs/results/verdicts.md says how.
# `limit` is the lowest `reach` that is not a watch: two thirds of the lowest that a layer of these
# models shows. `reach` is 0 where K experts carry the load and 1 at balance. Quantiles run from
# 0 to 1 in steps of 0.05.
"""


def regenerate(*, check: bool = False) -> int:
    """Write the file; with `check` write nothing and return 1 where it would change."""
    text = known_loads_text()
    same = PATH.exists() and PATH.read_text(encoding="utf-8") == text
    if not same and not check:
        PATH.write_text(text, encoding="utf-8")
        forget()
    print(f"known_loads.toml {'is up to date' if same else 'differs' if check else 'written'}")
    return 1 if check and not same else 0


def known_loads_text() -> str:
    """The file's text."""
    table = read_loads()
    table = table[~table["model"].isin(HELD_BACK) & table["breadth"].isin((MIXTURE, NARROW))]
    reach = [
        reach_of(effective_experts(r.counts), even_of(r), int(r.experts), int(r.top_k))
        for r in table.itertuples()
    ]
    table = table.assign(reach=reach).dropna(subset=["reach"])
    lines = [HEAD, "[limit]"]
    for breadth, own in table.groupby("breadth"):
        lines.append(f"{breadth} = {round(SHARE * float(own['reach'].min()), 3)}")
    for (breadth, model), own in table.groupby(["breadth", "model"], sort=True):
        lines += ["", "[[model]]", *_model(str(breadth), str(model), own)]
    return "\n".join(lines) + "\n"


def _model(breadth: str, model: str, own: pd.DataFrame) -> list[str]:
    quantiles = np.quantile(own["reach"].to_numpy(float), np.linspace(0.0, 1.0, STEPS))
    row = {
        "model": model,
        "breadth": breadth,
        "experts": int(own["experts"].iloc[0]),
        "top_k": int(own["top_k"].iloc[0]),
        "texts": int(own["text"].nunique()),
        "layers": int(own["layer"].nunique()),
        "quantiles": [round(float(q), 3) for q in quantiles],
    }
    return [f"{key} = {json.dumps(value)}" for key, value in row.items()]
