"""`moegeo explain`: what a name in a report means."""
