"""What others made, in, and what is made here, out: each door with a check when it is used."""
