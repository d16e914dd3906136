"""Geometry: distances, entropies, heterogeneity and their uncertainty, in numpy float64 alone."""
