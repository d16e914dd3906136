"""Findings, verdicts and interventions: rules over records, limits and advice as data."""

from moegeo_cli.verdict.interventions import recommend
from moegeo_cli.verdict.judging import judge
from moegeo_cli.verdict.thresholds import load_thresholds

__all__ = ["judge", "load_thresholds", "recommend"]
