"""`moegeo check`: what the files of a checkpoint or a run tell, without a model and without data.

`reading` gives a checkpoint's routers and experts piece by piece, `layer_sums` keeps of each layer
what findings and tables need, `checkpoint_sums` of a whole checkpoint.
"""
