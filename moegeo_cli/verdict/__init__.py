"""From records to a verdict: rules give findings, and findings select interventions."""

from moegeo_cli.verdict.interventions import recommend
from moegeo_cli.verdict.judging import judge
from moegeo_cli.verdict.thresholds import load_thresholds

__all__ = ["judge", "load_thresholds", "recommend"]
