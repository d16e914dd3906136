"""The routers of a model: which modules they are."""
