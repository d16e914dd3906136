"""Measurement: what a replay saw, turned into arrays that are kept and records that are shown."""
