"""Router inputs captured in a training run: `recorder` and `buffer` write them, `files` reads them.

`megatron` reads the trace of Megatron-LM's own recorder; `rows` holds what was read.
Captured inputs take the place of a replay: `models/captured.py` feeds them to the routers of a
checkpoint, so that the model itself is not loaded.
"""
