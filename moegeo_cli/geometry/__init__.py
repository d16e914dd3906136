"""The mathematics: from sums over tokens to metrics with intervals, in NumPy float64, no torch."""
