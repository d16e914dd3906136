"""Ordinary trainings: good runs, and the same runs with one common mistake each."""
