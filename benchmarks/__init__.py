"""Benchmarks. They print ratios from interleaved runs; tests hold no limits on time."""
