"""Draw the figures of docs/results/evidence.md as SVG text, reproducibly."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np

from benchmarks.evidence import prediction, recoveries
from benchmarks.evidence.analysis import Results
from benchmarks.evidence.settings import DECISIONS

# One hue for development and one for untouched bases; readable on white and on dark pages.
DEVELOPMENT, UNTOUCHED, REST = "#2a6f97", "#d1603d", "#7f8c8d"
TASK_MARKS = {"digits": "^", "english": "o", "languages": "s", "rules": "D"}
SHOWN = (
    "validation", "log.loss_extrapolated", "log.grad_norm", "log.load_cv", "collapse", "fsi",
    "dispersion", "information", "fhs", "fhs_relative", "fhs_trace", "fhs_conditional",
    "fisher.categorical.token.fhs", "dynamics.speed",
)  # fmt: skip


def draw_all(results: Results) -> dict[str, str]:
    """Every figure by its file name."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "moegeo", "svg.fonttype": "none", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.25, "figure.facecolor": "white",
    })  # fmt: skip
    figures: dict[str, Callable[[Results], Any]] = {
        "areas.svg": _areas, "over-time.svg": _over_time, "fsi.svg": _fsi, "limits.svg": _limits,
    }  # fmt: skip
    if results.restarts is not None:
        figures["interventions.svg"] = _interventions
    return {name: _render(draw(results)) for name, draw in figures.items()}


def _render(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None},
                   bbox_inches="tight")  # fmt: skip
    matplotlib.pyplot.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height))


def _areas(results: Results) -> Any:
    """Areas at 10%, with intervals, on both parts."""
    figure, axes = _axes(6.4, 4.4)
    for shift, colour, words, untouched in (
        (0.14, DEVELOPMENT, "development", False), (-0.14, UNTOUCHED, "untouched", True)
    ):  # fmt: skip
        table = results.part(0.1, untouched=untouched)
        areas = prediction.feature_areas(table, list(SHOWN), "failed").set_index("feature")
        known = [n for n in SHOWN if n in areas.index]
        y = np.array([len(SHOWN) - SHOWN.index(n) for n in known]) + shift
        own = areas.loc[known]
        axes.hlines(y, own["low"], own["high"], color=colour, linewidth=1.2)
        axes.plot(own["auc"], y, "o", color=colour, markersize=4, label=words)
    axes.axvline(0.5, color=REST, linewidth=1, linestyle="--")
    axes.set_yticks([len(SHOWN) - i for i in range(len(SHOWN))], [_shown(n) for n in SHOWN])
    axes.set_xlabel("AUC for failure, features at 10% of training (95%, bases resampled)")
    axes.set_xlim(0, 1)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _shown(name: str) -> str:
    return {"validation": "validation loss", "log.loss_extrapolated": "extrapolated training loss",
            "log.grad_norm": "gradient norm", "log.load_cv": "load CV (log)",
            "fisher.categorical.token.fhs": "fhs, categorical",
            "dynamics.speed": "speed"}.get(name, name)  # fmt: skip


def _over_time(results: Results) -> Any:
    """How soon the losses and the scores tell."""
    figure, axes = _axes(6.4, 3.2)
    for name, colour, mark in (
        ("validation", DEVELOPMENT, "o"), ("collapse", "#6a994e", "s"), ("fhs", UNTOUCHED, "^"),
        ("fhs_trace", "#8e6c8a", "D"), ("fsi", REST, "v"),
    ):  # fmt: skip
        rows = []
        for fraction in DECISIONS:
            table = results.part(fraction, untouched=False)
            areas = prediction.feature_areas(table, [name], "failed")
            if len(areas):
                rows.append((fraction * 100, areas.iloc[0]))
        x = [r[0] for r in rows]
        axes.plot(x, [r[1]["auc"] for r in rows], marker=mark, color=colour, label=_shown(name))
        axes.fill_between(x, [r[1]["low"] for r in rows], [r[1]["high"] for r in rows],
                          color=colour, alpha=0.10, linewidth=0)  # fmt: skip
    axes.axhline(0.5, color=REST, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks([2, 5, 10, 20], ["2%", "5%", "10%", "20%"])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of training at the decision")
    axes.set_ylabel("AUC for failure (development)")
    axes.legend(frameon=False, ncols=3, loc="lower center")
    return figure


def _fsi(results: Results) -> Any:
    """FSI at the end and performance, by task."""
    from matplotlib import pyplot

    tasks = sorted(results.runs["task"].unique())
    figure, all_axes = pyplot.subplots(1, len(tasks), figsize=(7.2, 2.4), sharey=True)
    table = results.decisions[1.0]
    for task, axes in zip(tasks, all_axes, strict=True):
        own = table[table["task"] == task]
        for healthy, colour, words in ((False, REST, "a cause"), (True, DEVELOPMENT, "healthy")):
            some = own[(own["kind"] == "healthy") == healthy]
            axes.scatter(some["fsi"], some["performance"], s=9, color=colour, label=words,
                         marker=TASK_MARKS[task], linewidths=0)  # fmt: skip
        axes.set_title(task, fontsize=9)
        axes.set_ylim(-0.2, 1.05)
    all_axes[0].set_ylabel("performance at the end")
    all_axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("FSI at the end", fontsize=9, y=-0.04)
    return figure


def _limits(results: Results) -> Any:
    """Collapse of collapsed and sound checkpoints, with the limit, by E and K."""
    from benchmarks.evidence import policies
    from moegeo_cli.verdict import load_thresholds
    from moegeo_cli.verdict.thresholds import collapse_limit

    table = policies.with_state(results.alarms, results.runs)
    table = table[table["fraction"] >= 0.1]
    cells = sorted({(int(e), int(k)) for e, k in
                    zip(table["model_experts"], table["model_top_k"], strict=True)})  # fmt: skip
    figure, axes = _axes(6.8, 3.0)
    generator = np.random.default_rng(0)
    limit = load_thresholds()["router-collapse"]
    for place, (experts, top_k) in enumerate(cells):
        own = table[(table["model_experts"] == experts) & (table["model_top_k"] == top_k)]
        for collapsed, colour in ((False, DEVELOPMENT), (True, UNTOUCHED)):
            some = own[own["collapsed_now"] == collapsed]
            x = place + generator.uniform(-0.28, 0.28, len(some))
            axes.scatter(x, some["collapse_excess"], s=5, color=colour, linewidths=0,
                         label=("collapsed" if collapsed else "not collapsed")
                         if not place else None)  # fmt: skip
        axes.plot([place - 0.4, place + 0.4], [collapse_limit(limit, experts, top_k)] * 2,
                  color="black", linewidth=1.2, label="limit" if not place else None)  # fmt: skip
    axes.set_xticks(range(len(cells)), [f"{e},{k}" for e, k in cells])
    axes.set_xlabel("E, K")
    axes.set_ylabel("collapse less its null,\nworst router")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def _interventions(results: Results) -> Any:
    """Recovery beyond the control, and the final performance, by arm."""
    from matplotlib import pyplot

    assert results.restarts is not None
    effects = recoveries.arm_effects(recoveries.with_outcomes(results.restarts, results.runs))
    effects = effects[effects["arm"] != "control"].sort_values(
        ["kind", "gain"], ascending=[False, True]
    )
    y = np.arange(len(effects))
    figure, both = pyplot.subplots(1, 2, figsize=(8.2, 0.24 * len(effects) + 0.8), sharey=True)
    for axes, name, words in zip(
        both, ("difference", "gain"), ("share that did not fail", "final performance"), strict=True
    ):
        low, high = effects[f"{name}_low"], effects[f"{name}_high"]
        axes.hlines(y, low, high, color=DEVELOPMENT, linewidth=1.2)
        axes.plot(effects[name], y, "o", color=DEVELOPMENT, markersize=4)
        axes.axvline(0, color=REST, linewidth=1, linestyle="--")
        axes.set_xlabel(f"{words}, less the control's")
    both[0].set_yticks(y, [f"{r.kind}: {r.arm}" for r in effects.itertuples()])
    return figure
