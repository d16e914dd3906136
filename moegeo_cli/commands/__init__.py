"""Commands and lenses, a folder each: what it measures, judges and needs alone."""
