"""`invariance`: which numbers survive rewritings that leave the outputs unchanged."""
