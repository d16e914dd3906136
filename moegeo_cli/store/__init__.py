"""The store: records and arrays of measured checkpoints, so that nothing is replayed twice."""
