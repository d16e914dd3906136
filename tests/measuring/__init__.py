"""From a pass to one router's sums."""
