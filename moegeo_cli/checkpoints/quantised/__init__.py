"""Quantised weights: `plan` recognises them by names and dtypes, `values` dequantises them.

`effective.EffectiveWeights` uses both.
"""
