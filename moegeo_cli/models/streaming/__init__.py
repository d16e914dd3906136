"""Models whose layers are read from the files while they compute."""
