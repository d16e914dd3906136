"""Output formats, a file each: its word, its suffixes, and what writes a record in it."""
