"""Quantised forms: told by names and dtypes, and turned into the values they stand for."""
