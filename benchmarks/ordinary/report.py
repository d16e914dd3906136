"""Write docs/results/ordinary.md and saves.csv from the committed records, reproducibly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.ordinary.outcomes import (
    CAUSES,
    DEVIATIONS,
    Outcome,
    judge_all,
    save_table,
    seed_deviation,
)
from benchmarks.ordinary.plan import MISTAKES, STEPS, plan_runs
from benchmarks.ordinary.records import RESULTS, read_records

PAGE = Path(__file__).parents[2] / "docs" / "results" / "ordinary.md"


def write_report(*, check: bool = False) -> int:
    """Write the page and saves.csv; with `check` write nothing and return 1 where one differs."""
    outcomes = judge_all()
    texts = {
        PAGE: page(outcomes),
        RESULTS / "saves.csv": save_table(outcomes).to_csv(
            index=False, float_format="%.6g", lineterminator="\n"
        ),
    }
    changed = [
        path for path, text in texts.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]  # fmt: skip
    for path in () if check else changed:
        path.write_text(texts[path], encoding="utf-8")
    words = "differs" if check else "written"
    print("\n".join(f"{p.name} {words}" for p in changed) or f"nothing {words}")
    return 1 if check and changed else 0


def page(outcomes: Sequence[Outcome]) -> str:
    """The page's text."""
    good = [o for o in outcomes if o.run.mistake is None]
    wrong = [o for o in outcomes if o.run.mistake is not None]
    losses = {name: loss for name, (loss, _) in read_records().items()}
    spread = seed_deviation(losses, plan_runs())
    assert spread is not None
    return "\n".join([
        HEAD.format(
            good=len(good), wrong=len(wrong), steps=STEPS, kinds=len(MISTAKES),
            deviations=DEVIATIONS, spread=spread,
        ),
        "## In short\n",
        *_summary(good, wrong),
        "\n## What each gate costs\n",
        *_gates(good, wrong),
        "\n## Good runs\n",
        "| run | final loss | verdict by save | findings over info after the first fifth |",
        "|---|---|---|---|",
        *(f"| {_name(o)} | {o.loss:.3f} | `{o.letters}` | {_late(o)} |" for o in good),
        "\n## Runs with a mistake\n",
        "`behind` is the final loss minus the twin's.\n",
        "| run | final loss | behind | verdict by save | first watch or failing | cause named at |",
        "|---|---|---|---|---|---|",
        *(_wrong_row(o) for o in wrong),
        "",
    ])  # fmt: skip


HEAD = """\
# Ordinary trainings

This page has what moegeo says at every save of {good} textbook trainings, and of {wrong} trainings
with one common mistake each. `python -m benchmarks.ordinary report` writes it from
`benchmarks/ordinary/results/`.

- **Runs.** Four models of 0.8 to 1.9 million parameters (Mixtral 8 × 2, GLM4-MoE 16 × 2 with
  sigmoid routers, Qwen3-MoE 32 × 4, OLMoE 64 × 8), three texts, two seeds, {steps} steps. Each is
  balanced as its authors published. There are {kinds} kinds of mistake, with three runs each.
- **Measured** with the bundled probe at 8,192 tokens, every 100 steps. The probe contains kinds of
  text that runs on `english` and `languages` were not trained on.
- **Verdict by save**: one character per save, step 0 first. `.` healthy, `w` watch, `F` failing.
- **Held back** runs (†) were not judged before the rules were fixed, with one exception below.
- **Twin**: the same run without the mistake.
- **Worse** means: the final held-out loss is above the twin's by more than {deviations:g} standard
  deviations between good seeds ({spread:.3f} nats, pooled over 12 pairs).

To repeat it: `python -m benchmarks.ordinary run --work DIR` (1.6 core-hours on two cores of an
AMD EPYC), then `measure --work DIR`, then `report`.
"""


def _summary(good: Sequence[Outcome], wrong: Sequence[Outcome]) -> list[str]:
    lines = ["| | looked at | held back |", "|---|---|---|"]
    rows: list[tuple[str, list[str]]] = [
        ("good runs: saves after the first fifth that are failing", []),
        ("good runs: saves after the first fifth that are watch", []),
        ("mistakes that ended worse and were found", []),
        ("of these with the cause named", []),
        ("mistakes that did not end worse and were named", []),
    ]
    for held in (False, True):
        own = [o for o in good if o.run.held_back == held]
        saves = [o.verdicts[i] for o in own for i in o.after]
        worse = [o for o in wrong if o.run.held_back == held and o.worse]
        rest = [o for o in wrong if o.run.held_back == held and not o.worse]
        found = [o for o in worse if o.first() is not None]
        counts = (
            f"{saves.count('failing')} of {len(saves)}",
            f"{saves.count('watch')} of {len(saves)}",
            f"{len(found)} of {len(worse)}",
            f"{sum(_named(o) is not None for o in worse)} of {len(worse)}",
            f"{sum(_named(o) is not None for o in rest)} of {len(rest)}",
        )
        for row, count in zip(rows, counts, strict=True):
            row[1].append(count)
    lines += [f"| {words} | {' | '.join(counts)} |" for words, counts in rows]
    return [
        *lines,
        "",
        "The exception: `learning-rate-high` was written after the held-back runs had been judged, "
        "because both held-back runs with ten times the learning rate ended worse, unnoticed. "
        "Its limit comes from the [study](evidence.md), not from these runs. Without it "
        f"{_without(wrong, 'learning-rate-high')} held-back mistakes that ended worse are "
        "found.",
        "",
        "A frozen router, a flag that is off, copied experts and an unsaved bias cost these small "
        "runs little or no loss. moegeo names them because they are exact faults, not because the "
        "runs fail.",
    ]


def _without(wrong: Sequence[Outcome], name: str) -> str:
    """How many held-back mistakes that ended worse are found without one rule, in words."""
    worse = [o for o in wrong if o.run.held_back and o.worse]
    left = [
        o for o in worse
        if any(n != name and s != "info" for found in o.findings for n, s in found.items())
    ]  # fmt: skip
    return f"{len(left)} of {len(worse)}"


def _gates(good: Sequence[Outcome], wrong: Sequence[Outcome]) -> list[str]:
    """What stopping at each level would have done, at saves after the first fifth."""
    worse = [o for o in wrong if o.worse]
    rest = [o for o in wrong if not o.worse]
    lines = [
        "| `--fail-on` | good runs stopped | bad runs stopped | bad runs let through | other "
        "mistakes stopped |",
        "|---|---|---|---|---|",
    ]
    for level, names in (("failing", ("failing",)), ("watch", ("watch", "failing"))):

        def stops(o: Outcome, names: tuple[str, ...] = names) -> bool:
            return any(o.verdicts[i] in names for i in o.after)

        lines.append(
            f"| `{level}` | {sum(map(stops, good))} of {len(good)} | "
            f"{sum(map(stops, worse))} of {len(worse)} | "
            f"{sum(not stops(o) for o in worse)} of {len(worse)} | "
            f"{sum(map(stops, rest))} of {len(rest)} |"
        )
    return lines


def _wrong_row(o: Outcome) -> str:
    first, named = o.first(), _named(o)
    assert o.behind is not None
    return (
        f"| {_name(o)} | {o.loss:.3f} | {o.behind:+.3f}{' worse' if o.worse else ''} | "
        f"`{o.letters}` | {'–' if first is None else first} | "
        f"{'–' if named is None else f'{named[0]} ({named[1]})'} |"
    )


def _named(o: Outcome) -> tuple[int, str] | None:
    """The first step at which a finding named the cause, and which."""
    causes = CAUSES[o.run.mistake or ""]
    for step, found in zip(o.steps, o.findings, strict=True):
        own = sorted(n for n, s in found.items() if n in causes and s != "info")
        if own:
            return step, f"`{own[0]}`"
    return None


def _late(o: Outcome) -> str:
    names = sorted({n for i in o.after for n, s in o.findings[i].items() if s != "info"})
    return ", ".join(f"`{n}`" for n in names) or "–"


def _name(o: Outcome) -> str:
    return f"{o.run.name}{' †' if o.run.held_back else ''}"
