"""Text in: read, clean, deduplicate, split; a manifest of where every document came from."""
