"""From a replay to statistics and records: sums of each router, estimates, checkpoint records."""
