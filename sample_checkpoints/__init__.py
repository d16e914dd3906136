"""Sample runs: the text they were trained on and the script that trained them."""
