"""Metrics of one router that rest on what is kept of it, a file each.

A file `NAME.py` has `estimate(router: RouterArrays) -> Estimate`; the metric has the file's name.
What it means stands under its name in `explanations/metrics.toml`, or in the file itself as
`METRIC`, a `MetricSpec` with a label.
"""
