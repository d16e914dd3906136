"""Metrics of one router that are computed from its stored arrays; each file is one metric.

A file `NAME.py` defines the metric NAME by `estimate(router: RouterArrays) -> Estimate`. The metric
is described in `explanations/metrics.toml`, or in the file as `METRIC` (a `MetricSpec`).
"""
