"""`moegeo report`: a report of what is kept, without a model."""
