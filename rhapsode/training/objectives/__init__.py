"""What a model is trained to do: one file for each objective, the same functions in the same order."""
