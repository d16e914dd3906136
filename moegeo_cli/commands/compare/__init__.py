"""`compare`: two runs side by side at matched progress."""
