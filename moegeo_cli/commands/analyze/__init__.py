"""`analyze`: a run's checkpoints measured, with their history and baseline, and judged."""
