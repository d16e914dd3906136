"""Probe datasets: the token sequences that are replayed through every checkpoint of a run."""

from moegeo_cli.probes.building import build_probe
from moegeo_cli.probes.dataset import Probe, Sample, Sequence
from moegeo_cli.probes.loading import BUNDLED, load_probe
from moegeo_cli.probes.rows import Source

__all__ = ["BUNDLED", "Probe", "Sample", "Sequence", "Source", "build_probe", "load_probe"]
