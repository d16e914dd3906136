"""Probe datasets: token sequences that every checkpoint of a run is measured on."""

from moegeo_cli.probes.building import build_probe
from moegeo_cli.probes.dataset import Probe, Sample, Sequence
from moegeo_cli.probes.loading import BUNDLED, load_probe
from moegeo_cli.probes.rows import Source

__all__ = ["BUNDLED", "Probe", "Sample", "Sequence", "Source", "build_probe", "load_probe"]
