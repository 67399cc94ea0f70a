"""Steps compiled for this processor: matrices of 32, 8 or 4 bits, one call for all layers of a token."""
