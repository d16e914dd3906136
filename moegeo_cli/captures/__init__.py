"""Router inputs that were captured in a training: the format, its readers, its recorder."""
