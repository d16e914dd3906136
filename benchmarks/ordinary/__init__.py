"""Ordinary trainings: textbook runs, and the same with one honest mistake each."""
