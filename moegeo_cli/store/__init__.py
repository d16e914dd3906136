"""Store: measured checkpoints kept beside the run, so that nothing is measured twice."""
