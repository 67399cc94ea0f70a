"""Looking inside: what a model has learned, in numbers and pictures."""
