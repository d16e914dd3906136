"""Find checkpoints in a run, open each layout, judge completeness, describe the model.

Nothing here imports torch until a pickled weight file is really opened.
"""
