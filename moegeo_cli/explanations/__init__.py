"""What the names in a report mean: the one place that verdict, reports and docs take it from."""
