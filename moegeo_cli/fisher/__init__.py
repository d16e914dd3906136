"""Fisher: diagonal Fisher information of every expert's router row, from tensors alone."""
