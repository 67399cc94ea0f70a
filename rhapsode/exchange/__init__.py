"""Models of others in, ours out: the doors, each with a check when it is used."""
