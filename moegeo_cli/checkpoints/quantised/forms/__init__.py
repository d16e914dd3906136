"""Quantised forms, a file each: a function from `Files` and a tensor name to a `FormResult`."""
