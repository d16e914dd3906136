"""Probe datasets: token sequences that every checkpoint of a run is measured on."""

from moegeo_cli.probes.building import build_probe
from moegeo_cli.probes.dataset import Probe, Sample, Sequence
from moegeo_cli.probes.loading import BUNDLED, load_probe

__all__ = ["BUNDLED", "Probe", "Sample", "Sequence", "build_probe", "load_probe"]
