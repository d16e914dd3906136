"""Quantised forms, a file each: a function from the files and a name to the recipe, or None."""
