"""What a replay holds in memory, and whether that fits."""
