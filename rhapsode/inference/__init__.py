"""From a prompt to tokens: cache, sampling, streaming, chat, evaluation."""
