"""Expert loads of published models, and the verdict's rule on loads applied to them."""
