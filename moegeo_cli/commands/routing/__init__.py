"""`routing`: what routing depends on."""
