"""From a replayed pass to one router's sums, estimates and records."""
