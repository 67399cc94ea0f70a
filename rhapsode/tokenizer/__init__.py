"""Text to token ids and back: character, word, byte, BPE and unigram; the store of a corpus's tokens."""
