"""Results of rules, stopping and interventions: blocks of docs/results/evidence.md.

"development" are the bases that limits were fitted on, "untouched" those that nothing was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks.evidence import calibration, policies, recoveries
from benchmarks.evidence.alarms import rule_columns
from benchmarks.evidence.analysis import Results
from benchmarks.evidence.auc import share
from benchmarks.evidence.markdown import percent, table_of
from benchmarks.evidence.regeneration import read_quantiles
from benchmarks.evidence.settings import DECISIONS, FRACTIONS


def side_by_side(
    table: pd.DataFrame, rules: Mapping[str, str], label: str, fractions: Sequence[float],
    only: str | None = None,
) -> list[list[object]]:  # fmt: skip
    """A row a rule and decision: sound and failed runs by alarm, on both parts of the bases."""
    parts = [
        policies.rates_table(table[table["untouched"] == apart], rules, label, fractions, only)
        .set_index(["rule", "at"])
        for apart in (False, True)
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name in rules:
        for fraction in fractions:
            cells = [
                own.loc[(name, fraction), column] if (name, fraction) in own.index else "–"
                for own in parts
                for column in ("false alarms", "recall", "precision")
            ]
            rows.append([name, percent(fraction), *cells])
    return rows


def rate_heads(first: str) -> list[str]:
    """Of tables with `side_by_side`'s rows."""
    rates = ("false alarms", "recall", "precision")
    return [first, "at", *(f"{part}: {rate}" for part in ("development", "untouched")
                           for rate in rates)]  # fmt: skip


def detection_block(results: Results) -> str:
    """The default policy's collapse alarm against the label of the same checkpoint."""
    table = policies.with_state(results.alarms, results.runs)
    rows = side_by_side(table, {"`router-collapse`": "collapse_alarm"}, "collapsed_now", FRACTIONS)
    return table_of(rate_heads("finding"), rows)


def foretelling_block(results: Results) -> str:
    """Alarms on runs that are clean at the decision against failure at the end."""
    table = policies.with_state(results.alarms, results.runs)
    table["any"] = table["collapse_alarm"] | table["gap_alarm"] | table["spike"]
    # Before ten entries of the log there is nothing that a spike could stand out from.
    table["spike"] = table["spike"].astype(object).where(table["log.loss_rise_max"].notna())
    rules = {"any of the three": "any", "`loss-behind-reference`": "gap_alarm",
             "`router-collapse`": "collapse_alarm", "`loss-spike`": "spike"}  # fmt: skip
    rows = side_by_side(table, rules, "failed", (0.05, 0.1, 0.2), only="clean")
    clean = table[table["clean"] & table["fraction"].isin(DECISIONS)]
    counts = ", ".join(
        f"{int((own['untouched'] == False).sum())} and {int(own['untouched'].sum())} at "  # noqa: E712
        f"{percent(float(at))}"
        for at, own in clean.groupby("fraction")
    )
    return f"Clean runs, development and untouched: {counts}.\n\n" + table_of(
        rate_heads("alarm"), rows
    )


def limits_block(results: Results) -> str:
    """The shipped limits by (E, K)."""
    from moegeo_cli.verdict import load_thresholds

    limit = load_thresholds()["router-collapse"]
    return table_of(
        ["E", "K", "limit on `collapse` less its null"],
        [[c.experts, c.top_k, f"{c.value:.3f}"] for c in limit.cells],
    )


def left_out_block(results: Results) -> str:
    """False alarms on tasks that the limits were not fitted on, by decision and by task."""
    table = policies.with_state(results.alarms, results.runs)
    table = table[~table["untouched"] & (table["fraction"] >= calibration.FITTED_FROM - 1e-9)]
    # Quantile and limit as shipped: what was fitted on the three other tasks, applied to each.
    quantiles = read_quantiles()
    collapse_N = calibration.leaving_tasks_out(
        table, lambda t: calibration.fit_collapse(t, quantiles["router-collapse"]),
        calibration.collapse_alarms,
    )  # fmt: skip
    decided = table["fraction"].isin(DECISIONS)
    limits = {
        task: calibration.fit_gap(
            table[decided & (table["task"] != task)], quantiles["loss-behind-reference"]
        )
        for task in sorted(set(table["task"]))
    }
    gap_N = (table["gap"] > table["task"].map(limits)).to_numpy()
    rows = []
    for name, alarm_N, label in (("`router-collapse`", collapse_N, "collapsed_now"),
                                 ("`loss-behind-reference`", gap_N, "failed")):  # fmt: skip
        for column in ("fraction", "task"):
            for value, own in table.assign(alarm=alarm_N).groupby(column):
                sound = own[~own[label].astype(bool)]
                where = percent(value) if column == "fraction" else value
                rows.append([name, where, share(int(sound["alarm"].sum()), len(sound))])
    return table_of(["limit", "decision or task", "false alarms on tasks left out"], rows)


def rules_block(results: Results) -> str:
    """All rules that the study can replay, at 10%, against failure at the end."""
    table, rules = rule_columns(results.runs, results.points)
    named = {f"`{name}`": column for name, column in rules.items()}
    at = table[np.isclose(table["fraction"], 0.1)]
    shares = [share(int(own["failed"].sum()), len(own)) for _, own in at.groupby("untouched")]
    rows = side_by_side(table, named, "failed", (0.1,))
    return (f"Of all runs failed: development {shares[0]}, untouched {shares[1]}. A precision no "
            "higher than that says nothing.\n\n" + table_of(rate_heads("rule"), rows))  # fmt: skip


def stopping_block(results: Results) -> str:
    """What stopping at the first loss alarm would have saved."""
    table = results.alarms[results.alarms["fraction"] >= 0.1]
    rows = []
    for words, untouched in (("development", False), ("untouched", True)):
        own = table[table["untouched"] == untouched]
        for name, column in (("loss-behind-reference", "gap_alarm"),
                             ("router-collapse", "collapse_alarm")):  # fmt: skip
            found = policies.stopping_value(own, column, (0.1, 0.2, 0.5))
            rows += [
                [
                    words,
                    f"`{name}`",
                    percent(r["until"]),
                    f"{r['saved']:.1%}",
                    r["failed stopped"],
                    r["sound stopped"],
                ]
                for _, r in found.iterrows()
            ]
    return table_of(
        ["bases", "stop at", "until", "compute saved", "failed runs stopped", "sound runs lost"],
        rows,
    )  # fmt: skip


def interventions_block(results: Results) -> str:
    """Every arm beside its control."""
    if results.restarts is None:
        return "The restarts have not been run."
    table = recoveries.with_outcomes(results.restarts, results.runs)
    effects = recoveries.arm_effects(table)
    rows = []
    for _, r in effects.sort_values(["kind", "gain"], ascending=[True, False]).iterrows():
        if r["arm"] == "control":
            continue
        rows.append([
            f"`{r['kind']}`", f"`{r['arm']}`", f"{r['runs']} / {r['configurations']}",
            f"{r['recovered']} of {r['n']}", f"{r['recovered_control']} of {r['n']}",
            signed(r, "difference", 2),
            f"{r['recovered_failing']} / {r['recovered_failing_control']} of {r['n_failing']}",
            signed(r, "gain", 3), f"{r['collapsed']} / {r['collapsed_control']}",
        ])  # fmt: skip
    return table_of(
        ["alarm", "arm", "runs / configurations", "did not fail", "control", "difference",
         "of those that had failed: arm / control", "change of performance",
         "collapsed: arm / control"], rows,
    )  # fmt: skip


def signed(row: pd.Series, name: str, digits: int) -> str:
    """A change with its interval, if it has one."""
    words = f"{row[name]:+.{digits}f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return words if np.isnan(low) else f"{words} [{low:+.{digits}f}, {high:+.{digits}f}]"
