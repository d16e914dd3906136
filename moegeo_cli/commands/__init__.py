"""One folder per command or lens: what it measures, its rules, and code that only it needs."""
