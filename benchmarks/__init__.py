"""Benchmarks: ratios from interleaved runs, never bars inside the tests."""
