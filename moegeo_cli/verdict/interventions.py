"""Recommend changes: choose entries of interventions.toml by findings and the run's settings."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.records import ConfigKey, Finding, Intervention, LayerRecord, RunRecord, from_dict
from moegeo_cli.records.verdict import Grounds
from moegeo_cli.verdict.thresholds import FOLDER

FRAMEWORKS = (
    "transformers", "trl", "axolotl", "llama-factory", "megatron", "torchtitan", "olmo-core",
    "megablocks", "deepspeed", "nemo", "nanotron", "verl",
)  # fmt: skip
READS_CONFIG = ("transformers", "trl", "axolotl")  # they train with the checkpoint's config.json
OF_THE_TRAINER = ("learning_rate", "clipping")  # arguments that the Trainer always reads
STUDY = "evidence study: docs/results/evidence.md"
ASSUMED = "assumed: nothing beside the checkpoint names a framework"


def recommend(
    run: RunRecord, findings: Sequence[Finding], framework: str | None = None, facts: bool = False
) -> tuple[Intervention, ...]:
    """Interventions for the active findings that apply to this checkpoint, best first.

    The order is: those that remove an exact cause; those with a measured gain; unmeasured ones;
    and last, folded into one line, those that were measured without a gain.

    Args:
        run: the run, for its settings and its newest checkpoint, if it has one.
        findings: the findings of its verdict.
        framework: the framework whose keys are named; None for the one that the files point to.
        facts: whether findings of severity info get advice too.

    Raises:
        UsageError: an unknown framework.
    """
    check_framework(framework)
    named = framework or run.run.get("framework")
    note = None if named in FRAMEWORKS else ASSUMED
    name = named if named in FRAMEWORKS else "transformers"
    called_for = [f for f in findings if f.state == "active" and (facts or f.severity != "info")]
    active = {f.name: f for f in called_for}
    chosen: list[tuple[int, Intervention]] = []
    for entry in catalogue()["intervention"]:
        called = [f for f in entry["findings"] if f in active]
        if not called or not APPLIES[entry["applies"]](run):
            continue
        layers = sorted({n for f in called for n in active[f].layers})
        key = _key(entry, run, name, note)
        if key.current is not None and key.current == key.suggested:
            continue  # the setting already has the suggested value
        evidence = _evidence(entry, called)
        rank = _rank(entry, called, evidence)
        chosen.append(
            (
                rank,
                Intervention(
                    id=entry["id"],
                    title=entry["title"],
                    action=entry["action"],
                    findings=tuple(called),
                    why="; ".join(active[f].message for f in called),
                    key=key,
                    check=entry["check"],
                    evidence=evidence,
                    conflicts=tuple(entry.get("conflicts", ())),
                    layers=tuple(layers),
                    folded=rank == FOLDED,
                ),
            )
        )
    return tuple(item for _, item in sorted(chosen, key=lambda c: c[0]))


CAUSE, GAINS, UNMEASURED, FOLDED = range(4)
DIGITS = 4  # significant digits of a suggested value


def _rank(entry: Mapping[str, Any], called: Sequence[str], evidence: Grounds) -> int:
    """The group of an entry in the order of `recommend`."""
    if entry.get("cause") and entry["findings"][0] in called:
        return CAUSE
    if evidence["grade"] != "measured" or "saved" in evidence:
        return UNMEASURED
    low, _ = evidence.get("performance_interval", (0.0, 0.0))
    return GAINS if low > 0.0 else FOLDED


def check_framework(framework: str | None) -> None:
    """Refuse an unknown framework, before the checkpoint is replayed.

    Raises:
        UsageError: the framework is unknown.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise UsageError(
            f"no framework is called {framework!r}", found=f"known: {', '.join(FRAMEWORKS)}"
        )


@functools.cache
def catalogue() -> Mapping[str, Any]:
    """The content of interventions.toml."""
    return tomllib.loads((FOLDER / "interventions.toml").read_text(encoding="utf-8"))


def find_key(setting: str, framework: str, model_type: str | None) -> str | None:
    """The key of a setting in a framework; None if it has none."""
    if not setting:
        return None
    if framework in READS_CONFIG:
        own = catalogue()["by_model"].get(setting, {}).get(model_type)
        if own is not None:
            return own or None
    key = catalogue()["settings"].get(setting, {}).get(framework)
    return None if key is None else str(key)


def _key(entry: Mapping[str, Any], run: RunRecord, framework: str, note: str | None) -> ConfigKey:
    training = run.run.get("training") or {}
    key = find_key(entry["setting"], framework, run.run.get("model_type"))
    if key is None:
        words = (
            "no key in this framework" if entry["setting"] else "not a setting: a change by hand"
        )
        return ConfigKey(framework, None, note=_join(words, note), lines=entry.get("lines"))
    current = training.get(key, training.get(f"trainer.{key}"))
    if entry["setting"] == "learning_rate":
        current = _peak_rate(run)
        note = _join("the largest that the run logged" if current is not None else None, note)
    suggested = entry.get("value")
    if "factor" in entry:
        number = isinstance(current, int | float) and not isinstance(current, bool) and current
        suggested = current * entry["factor"] if number else entry.get("start")
    live, why = _live(entry["setting"], framework, training)
    return ConfigKey(framework, key, current, _round(suggested), live, _join(why, note))


def _live(
    setting: str, framework: str, training: Mapping[str, Any]
) -> tuple[bool | None, str | None]:
    """Whether the framework reads a setting as configured (None if not known), and why not."""
    if setting == "balance" and framework in READS_CONFIG:
        if training.get("output_router_logits") is True:
            return True, None
        return False, "set output_router_logits = true as well: it is read only then"
    if setting == "balance" and framework == "nanotron":
        return False, "declared and never read"
    if setting == "switch" or (setting in OF_THE_TRAINER and framework in READS_CONFIG):
        return True, None
    return None, None


def _peak_rate(run: RunRecord) -> float | None:
    """The largest learning rate in the run's log, which is the configured one after warm-up."""
    rates = [entry.get("learning_rate") for entry in run.run.get("log") or ()]
    known = [float(r) for r in rates if isinstance(r, int | float)]
    return float(f"{max(known):.{DIGITS}g}") if known else None


def _evidence(entry: Mapping[str, Any], called: Sequence[str]) -> Grounds:
    """The evidence of an intervention: the study's for one of these findings, or the entry's."""
    for finding in called:
        for row in recoveries():
            if (row["intervention"], row["finding"]) == (entry["id"], finding):
                cited = {"literature": entry["source"]} if entry["source"] else {}
                return from_dict(Grounds, {"grade": "measured", "source": STUDY, **row, **cited})
    return from_dict(Grounds, {name: entry[name] for name in ("grade", "source") if entry[name]})


@functools.cache
def recoveries() -> tuple[Mapping[str, Any], ...]:
    """The rows of recoveries.toml: the study's results, by intervention and finding."""
    text = (FOLDER / "recoveries.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text).get("recovery", ()))


def _round(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _join(*notes: str | None) -> str | None:
    return "; ".join(n for n in notes if n) or None


def _switch_off(run: RunRecord) -> bool:
    training = run.run.get("training") or {}
    return (
        run.run.get("framework") in (None, *READS_CONFIG)
        and find_key("balance", "transformers", run.run.get("model_type")) is not None
        and bool(training.get("router_aux_loss_coef"))
        and training.get("output_router_logits") is not True
    )


def _balance_live(run: RunRecord) -> bool:
    training = run.run.get("training") or {}
    return bool(training.get("router_aux_loss_coef")) and not _switch_off(run)


def _balance_can_rise(run: RunRecord) -> bool:
    return not _switch_off(run) and not _selection_bias(run)


def _selection_bias(run: RunRecord) -> bool:
    return run.run.get("model_type") in {"deepseek_v3", "glm4_moe", "dots1", "ernie4_5_moe"} or (
        run.run.get("scoring") == "sigmoid"
    )


def _newest_layers(run: RunRecord) -> Sequence[LayerRecord]:
    return run.newest.layers if run.checkpoints else ()


def _finite(run: RunRecord) -> bool:
    return all(layer.state == "ok" for layer in _newest_layers(run))


def _has_dead(run: RunRecord) -> bool:
    return any(layer.dead for layer in _newest_layers(run))


def _has_clean_checkpoint(run: RunRecord) -> bool:
    return any(
        c.verdict is not None and c.verdict.status != "failing" for c in run.checkpoints[1:-1]
    )


def _capacity(run: RunRecord) -> bool:
    training = run.run.get("training") or {}
    return any("capacity" in key for key in training)


APPLIES: dict[str, Callable[[RunRecord], bool]] = {
    "always": lambda run: True,
    "balance_can_rise": _balance_can_rise,
    "balance_live": _balance_live,
    "capacity": _capacity,
    "finite": _finite,
    "has_clean_checkpoint": _has_clean_checkpoint,
    "has_dead": _has_dead,
    "selection_bias": _selection_bias,
    "softmax": lambda run: run.run.get("scoring") == "softmax",
    "switch_off": _switch_off,
}
