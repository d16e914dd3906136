"""The first step of every command: find a run's checkpoints, open their files, describe the model.

`discover.open_run` finds the checkpoints of a run. `checkpoint.Checkpoint` gives access to the
files of one: config, training log, tensors. `models/` and `replay/` take it from there.
torch is imported only when a pickled weight file is opened or a tensor is asked for as a torch
tensor.
"""
