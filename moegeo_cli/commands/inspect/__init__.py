"""`inspect`: what a checkpoint or a run is, from headers alone."""
