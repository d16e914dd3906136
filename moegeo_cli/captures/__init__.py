"""Router inputs captured in a training run: the recorder, the file format and its readers.

Captured inputs take the place of a replay: `models/captured.py` feeds them to the routers of a
checkpoint, so that the model itself is not loaded.
"""
