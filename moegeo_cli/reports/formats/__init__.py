"""One file per output format: its name, its suffixes, and the functions that write records."""
