"""What others made, in and out."""
