"""What a model is: one file for each form in which it is given, and how it is loaded."""
