"""One thin module per command: parse, call one function, show the result."""
