"""Replay: run the probe through the model, forward and backward, and record every router call."""
