"""The words about interventions in a report, for all formats: setting, evidence, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moegeo_cli.records import ConfigKey, Intervention
from moegeo_cli.reports.escaping import clean

SETTING_DIGITS = 10  # a number with more digits is a logged value and is rounded


def key_words(key: ConfigKey) -> str:
    """The setting that an intervention changes: name, current value and suggested value."""
    if key.key is None:
        return f"no key in {clean(key.framework)}"
    if key.suggested is None:
        now = f", now {setting(key.current)}" if key.current is not None else ""
        return clean(key.key) + now
    return f"{clean(key.key)}: {setting(key.current)} → {setting(key.suggested)}"


def live_words(key: ConfigKey, *, lines: bool = True) -> str:
    """Whether the framework reads the setting.

    Args:
        key: the setting.
        lines: whether the report shows the lines of code to add.
    """
    if key.key is None:
        if not key.lines:
            return ""
        return "add the lines below" if lines else "lines to add are in the full report"
    if key.live is None:
        return f"not known whether {clean(key.framework)} reads it"
    return f"{clean(key.framework)} reads it" if key.live else "NOT READ as configured"


def evidence_words(evidence: Mapping[str, Any]) -> str:
    """The evidence that an intervention works."""
    words = clean(evidence.get("grade", "untested"))
    counts = [evidence.get(name) for name in ("recovered", "recovered_control", "n")]
    if None not in counts:
        recovered, control, count = (setting(c) for c in counts)
        words += f": {recovered} of {count} restarts did not fail with it, {control} without it"
        if evidence.get("collapsed") is not None:
            words += (
                f"; {evidence['collapsed']} against {evidence['collapsed_control']} ended collapsed"
            )
        if isinstance(evidence.get("performance_interval"), list | tuple):
            low, high = evidence["performance_interval"]
            words += f"; final performance {evidence['performance']:+.2f} [{low:+.2f}, {high:+.2f}]"
    if "saved" in evidence:
        failing, sound = evidence["stopped_failing"], evidence["stopped_sound"]
        words += (
            f": stopping there saved {evidence['saved']:.0%} of all compute; it stopped "
            f"{failing[0]} of {failing[1]} failing runs and {sound[0]} of {sound[1]} sound ones"
        )
    parts = [clean(evidence[name]) for name in ("source", "literature") if evidence.get(name)]
    return words + (f" ({'; '.join(parts)})" if parts else "")


def setting(value: Any) -> str:
    """A setting's value as it is written in a config file."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return ", ".join(setting(v) for v in value)
    if isinstance(value, float) and len(repr(value)) > SETTING_DIGITS:
        return f"{value:.4g}"
    return clean(json.dumps(value, default=str))


def to_do(interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """The interventions in the verdict's order, without those that showed no gain in the study."""
    return tuple(i for i in interventions if not i.folded)


def folded_words(interventions: Sequence[Intervention]) -> str:
    """A sentence on interventions that showed no gain in the study; "" for none."""
    tried = []
    for item in interventions:
        if item.folded:
            change = item.evidence.get("performance")
            known = f" ({change:+.2f})" if isinstance(change, int | float) else ""
            tried.append(f"{clean(item.title).lower()}{known}")
    if not tried:
        return ""
    return f"Tried in the study without a gain in final performance: {'; '.join(tried)}."
