"""The files that others keep their tokenizers in, one module per form; each makes a tokenizer.json of them."""
