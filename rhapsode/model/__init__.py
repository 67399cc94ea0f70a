"""The transformer: one set of layers, one table row per family, the folder it is saved in."""
