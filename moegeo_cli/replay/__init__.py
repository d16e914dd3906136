"""Replay: a model on a device, its routers tapped, a probe run forward and backward."""
