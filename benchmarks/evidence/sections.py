"""Results of runs, features and the paper's claims: blocks of docs/results/evidence.md.

"dev" are development bases, "untouched" those that nothing was fitted or chosen on.
"""

from __future__ import annotations

import numpy as np

from benchmarks.evidence import prediction, recoveries, relations
from benchmarks.evidence.analysis import Results
from benchmarks.evidence.auc import Resampling, share, stratified_auc
from benchmarks.evidence.markdown import percent, table_of
from benchmarks.evidence.settings import DECISIONS, FRACTIONS

# Causes that are not at work at 10% of training.
BEGINS_LATER = ("late-collapse", "late-divergence", "data-shift", "bad-resume")
AT_WORK = ("validation", "collapse", "fsi", "dispersion", "fhs", "fhs_relative", "fhs_trace",
           "fhs_conditional")  # fmt: skip
# Displayable at every decision; all others are in results/areas.csv.gz.
HEADLINE = {
    "validation": "validation loss",
    "log.training_loss": "training loss (log)",
    "log.loss_slope": "its slope",
    "log.loss_extrapolated": "its extrapolation",
    "log.grad_norm": "gradient norm (log)",
    "log.load_cv": "load CV (log)",
    "log.router_z": "router z (log)",
    "collapse": "`collapse`",
    "collapse_worst": "`collapse_worst`",
    "dead_experts": "`dead_experts`",
    "fsi": "`fsi`",
    "dispersion": "`dispersion`",
    "information": "`information`",
    "near_ties": "`near_ties`",
    "logit_max": "`logit_max`",
    "fhs": "`fhs` (as the paper words it)",
    "fhs_relative": "`fhs_relative`",
    "fhs_trace": "`fhs_trace`",
    "fhs_conditional": "`fhs_conditional`",
    "fisher.categorical.token.fhs": "`fhs`, categorical",
    "dynamics.speed": "`speed`",
    "dynamics.saturation": "`saturation`",
}


def claims_block(results: Results) -> str:
    """What [GM] says, beside what was found here."""
    early, usual = (
        [prediction.feature_areas(results.part(f, untouched=u), ["fhs", "validation"], "failed")
         .set_index("feature") for u in (False, True)]
        for f in (DECISIONS[0], prediction.PRIMARY_AT)
    )  # fmt: skip
    fsi = relations.fsi_performance([(1.0, results.decisions[1.0])]).iloc[0]
    diagonal = relations.diagonal_and_whole(results.exact)["pearson"]
    beyond = [f"{own.loc['fhs', 'auc'] / own.loc['validation', 'auc'] - 1:+.0%}" for own in usual]
    rows = [
        ["FHS predicts failure: AUC at 10% of training", "0.89", " and ".join(
            f"{own.loc['fhs', 'auc']:.2f}" for own in usual)],
        ["that is better than loss-based stopping by", "+23%", " and ".join(beyond)],
        ["at a fortieth of the compute: AUC at 2%", "", " and ".join(
            f"{own.loc['fhs', 'auc']:.2f} (validation loss {own.loc['validation', 'auc']:.2f})"
            for own in early)],
        ["FSI and final performance, within tasks: r", "0.91",
         f"{fsi['within']:+.2f} [{fsi['within_low']:+.2f}, {fsi['within_high']:+.2f}]"],
        ["heterogeneity from the diagonal and from the whole Fisher: r", "0.95",
         f"{diagonal.min():.2f} to {diagonal.max():.2f}, by form, kind and size"],
    ]  # fmt: skip
    if results.restarts is not None:
        table = recoveries.with_outcomes(results.restarts, results.runs)
        arms, control = table[table["arm"] != "control"], table[table["arm"] == "control"]
        rows.append([
            "restarts that recover", "87%",
            f"{arms['recovered'].mean():.0%} with an intervention, "
            f"{control['recovered'].mean():.0%} without any",
        ])  # fmt: skip
    return table_of(["claim", "[GM]", "here (development and untouched bases)"], rows)


def runs_block(results: Results) -> str:
    """What was trained and what became of it."""
    runs = results.runs
    outcomes = ("failed: diverged", "failed: collapsed", "failed: behind", "collapsed alone",
                "sound")  # fmt: skip
    heads = ["cause", "runs", *outcomes[:3], "did not fail: collapsed", "did not fail"]
    rows = []
    for kind, own in [*runs.groupby("kind"), ("all", runs)]:
        counts = own["outcome"].value_counts()
        rows.append([kind, len(own), *(int(counts.get(o, 0)) for o in outcomes)])
    tasks = table_of(
        ["task", "runs", "failed", "collapsed at the end", "unigram loss", "best loss",
         "deviation between healthy seeds (performance)"],
        [[task, len(own), int(own["failed"].sum()), int(own["collapsed"].sum()),
          f"{own['unigram'].iloc[0]:.3f}", f"{own['loss_1'].min():.3f}",
          f"{own['seed_spread'].iloc[0]:.3f}"] for task, own in runs.groupby("task")],
    )  # fmt: skip
    hours = runs["seconds"].sum() / 3600
    cost = (f"{len(runs)} runs, {runs['configuration'].nunique()} configurations of "
            f"{runs['base'].nunique()} bases; {hours:.1f} core-hours, median "
            f"{runs['seconds'].median():.0f} s a run with its measurements.")  # fmt: skip
    return f"{cost}\n\n{table_of(heads, rows)}\n\n{tasks}"


def variance_block(results: Results) -> str:
    """Seeds beside configurations."""
    parts = relations.variance_parts(results.runs, "performance")
    return table_of(
        ["task", "between seeds", "between causes of a base", "between bases"],
        [[r.task, f"{r.seeds:.4f}", f"{r.causes:.4f}", f"{r.bases:.4f}"]
         for r in parts.itertuples()],
    )  # fmt: skip


def primary_block(results: Results) -> str:
    """The primary hypothesis, where it was fixed, and on untouched bases."""
    rows = []
    for words, untouched in (("development", False), ("untouched", True)):
        table = results.part(prediction.PRIMARY_AT, untouched=untouched)
        if untouched:
            change = prediction.nested_transfer(
                results.part(prediction.PRIMARY_AT, untouched=False), table, "failed"
            )
        else:
            change = prediction.nested_change(table, "failed")
        rows.append([
            words, f"{change.base.positives} / {change.base.negatives}", change.base, change.full,
            f"{change.change:+.3f} [{change.low:+.3f}, {change.high:+.3f}]", f"{change.p:.2g}",
        ])  # fmt: skip
    return table_of(
        ["bases", "failed / sound", "validation loss alone", "with collapse and fhs_trace",
         "change of AUC", "p"], rows,
    )  # fmt: skip


def areas_block(results: Results) -> str:
    """The area of each headline feature at each decision, on both parts."""
    blocks = []
    for words, untouched in (("Development bases", False), ("Untouched bases", True)):
        columns = []
        for fraction in DECISIONS:
            table = results.part(fraction, untouched=untouched)
            areas = prediction.feature_areas(table, list(HEADLINE), "failed")
            columns.append(areas.set_index("feature"))
        rows = []
        for name, shown in HEADLINE.items():
            cells = [
                f"{c.loc[name, 'auc']:.2f} [{c.loc[name, 'low']:.2f}, {c.loc[name, 'high']:.2f}]"
                if name in c.index else "–" for c in columns
            ]  # fmt: skip
            rows.append([shown, *cells])
        counts = columns[2].loc["validation"]
        blocks.append(
            f"**{words}** ({int(counts['failed'])} failed, {int(counts['sound'])} sound at "
            f"10%):\n\n" + table_of(["", *map(percent, DECISIONS)], rows)
        )
    return "\n\n".join(blocks)


def exploratory_block(results: Results) -> str:
    """What stands after Holm's correction, strongest first, at 10%."""
    areas = results.areas
    standing = areas[areas["p_holm"] < 0.05]
    by_decision = ", ".join(
        f"{percent(f)}: {int((standing['at'] == f).sum())} of {int((areas['at'] == f).sum())}"
        for f in DECISIONS
    )
    ours = standing[(standing["at"] == 0.1) & ~standing["feature"].str.contains(
        "loss|^log|validation", regex=True)]  # fmt: skip
    top = ours.assign(strength=(ours["auc"] - 0.5).abs()).sort_values(
        ["strength", "feature"], ascending=[False, True]
    )[:12]
    rows = [
        [f"`{r.feature}`", f"{r.auc:.2f} [{r.low:.2f}, {r.high:.2f}]", f"{r.p_holm:.2g}",
         f"{r.untouched_auc:.2f} [{r.untouched_low:.2f}, {r.untouched_high:.2f}]"]
        for r in top.itertuples()
    ]  # fmt: skip
    return (f"{len(areas)} areas, of which after correction stand {by_decision}. The strongest at "
            "10% that are no loss:\n\n" + table_of(
                ["feature", "development", "p (Holm)", "untouched"], rows))  # fmt: skip


def sets_block(results: Results) -> str:
    """Combinations of features, leaving tasks out."""
    rows = []
    for name, features in prediction.SETS.items():
        cells: list[object] = [name]
        for fraction in DECISIONS:
            table = results.part(fraction, untouched=False)
            usable = [f for f in features if f in table.columns and table[f].notna().any()]
            scores = prediction.leave_task_out(
                prediction.matrix(table, usable), table, "failed", np.ones(len(table))
            )
            area = stratified_auc(scores, table["failed"].to_numpy(bool), table["task"],
                                  Resampling.of(table["task"], table["base"]))  # fmt: skip
            cells.append(area)
        rows.append(cells)
    return table_of(["features", *map(percent, DECISIONS)], rows)


def paper_block(results: Results) -> str:
    """The paper's numbers beside those found, at 10% and as early as anything was measured."""
    rows = []
    for fraction in (DECISIONS[0], prediction.PRIMARY_AT):
        for words, untouched in (("development", False), ("untouched", True)):
            table = results.part(fraction, untouched=untouched)
            found = prediction.feature_areas(table, ["fhs", "validation"], "failed")
            score, loss = found.set_index("feature").loc[["fhs", "validation"], "auc"]
            rows.append([percent(fraction), words, f"{score:.2f}", f"{1 - score:.2f}",
                         f"{loss:.2f}", f"{score / loss - 1:+.0%}",
                         f"{(1 - score) / loss - 1:+.0%}"])  # fmt: skip
    return table_of(
        ["at", "bases", "AUC of `fhs`, high as failing (paper: 0.89)", "low as failing",
         "validation loss at matched tokens", "`fhs` over it (paper: +23%)", "low `fhs` over it"],
        rows,
    )  # fmt: skip


def fsi_block(results: Results) -> str:
    """FSI at each stage against final performance."""
    stages = [(f, results.decisions[f]) for f in FRACTIONS]
    found = relations.fsi_performance(stages)
    tasks = sorted(results.runs["task"].unique())
    rows = [
        [percent(float(r["stage"])), int(r["runs"]), *(f"{r[t]:+.2f}" for t in tasks),
         f"{r['within']:+.2f} [{r['within_low']:+.2f}, {r['within_high']:+.2f}]",
         f"{r['ranks']:+.2f} [{r['ranks_low']:+.2f}, {r['ranks_high']:+.2f}]",
         f"{r['pooled']:+.2f} [{r['pooled_low']:+.2f}, {r['pooled_high']:+.2f}]",
         f"{r['bend']:+.2f} [{r['bend_low']:+.2f}, {r['bend_high']:+.2f}] (+{r['gain']:.0%})"]
        for _, r in found.iterrows()
    ]  # fmt: skip
    return table_of(
        ["FSI at", "runs", *tasks, "within tasks", "ranks within tasks", "pooled",
         "bend (variance it adds)"], rows,
    )  # fmt: skip


def diagonal_block(results: Results) -> str:
    """The diagonal beside the whole Fisher."""
    found = relations.diagonal_and_whole(results.exact)
    return table_of(
        ["kind", "D", "form", "routers", "Pearson", "Pearson of logarithms", "Spearman",
         "diagonal's share of the squared norm (median)"],
        [[r.kind, r.width, r.form, r.routers, f"{r.pearson:.2f}", f"{r.pearson_log:.2f}",
          f"{r.spearman:.2f}", f"{r.share:.0%}"] for r in found.itertuples()],
    )  # fmt: skip


def probes_block(results: Results) -> str:
    """Small probes beside the default one."""
    from benchmarks.evidence.features import PROBE_SIZES

    found = relations.probe_agreement(results.points, PROBE_SIZES)
    return table_of(
        ["probe tokens", "same routing axis", "same `router-collapse`", "failing ones found"],
        [[f"{r.tokens:,}", share(r.routing, r.checkpoints), share(r.collapse, r.checkpoints),
          share(r.found, r.failing)] for r in found.itertuples()],
    )  # fmt: skip


def early_block(results: Results) -> str:
    """The same areas at 10% without runs whose cause begins later; looked at afterwards."""
    heads, areas = [""], []
    for words, untouched in (("development", False), ("untouched", True)):
        own = results.part(prediction.PRIMARY_AT, untouched=untouched)
        own = own[~own["kind"].isin(BEGINS_LATER)]
        failed = int(own["failed"].sum())
        heads.append(f"{words} ({failed} failed, {len(own) - failed} not)")
        areas.append(prediction.feature_areas(own, AT_WORK, "failed").set_index("feature"))
    rows = [
        [HEADLINE[name], *(
            f"{own.loc[name, 'auc']:.2f} [{own.loc[name, 'low']:.2f}, {own.loc[name, 'high']:.2f}]"
            for own in areas
        )]
        for name in AT_WORK
    ]  # fmt: skip
    return table_of(heads, rows)
