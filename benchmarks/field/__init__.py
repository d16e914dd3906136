"""Loads of models that people deploy, and what the verdict's rule on loads says of them."""
