"""`check`: what the files alone tell."""
