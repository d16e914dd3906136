"""The study: which signals predict a failing run, and which interventions help.

tasks → plan → training (with faults) → labels, features → table → prediction, thresholds,
interventions → the data files that the verdict reads. `protocol.md` was fixed before the main runs.
"""
