"""What a model writes along the way of its training, to look at: a text, a text with its gaps filled, a translation."""

from __future__ import annotations

import torch

from rhapsode.inference.language_model import LanguageModel
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.tokenizer.tokenizer import Tokenizer

SAMPLE_TOKENS = 120


def write_sample(writer: LanguageModel, prompt: str, temperature: float, seed: int) -> str:
    """A decoder's continuation of `prompt`; an encoder's fillings of its gaps; what an encoder-decoder makes of it."""
    model, tokenizer = writer.model, writer.tokenizer
    if isinstance(model, Decoder):
        return writer.generate(prompt, temperature=temperature, max_new_tokens=SAMPLE_TOKENS, seed=seed).text
    before, after = tokenizer.frame
    ids = [*before, *tokenizer.encode(prompt, special=True), *after]
    source = torch.tensor([ids], device=model.device)  # (1, source)
    with torch.no_grad():
        if isinstance(model, Encoder):
            return _filled(model, tokenizer, source)
        return _answer(model, tokenizer, source)


def _filled(model: Encoder, tokenizer: Tokenizer, source: torch.Tensor) -> str:
    """The text with the most likely token in each gap."""
    best = model(source)[0, :, : tokenizer.vocabulary_size].argmax(dim=-1).tolist()  # source
    pairs = zip(source[0].tolist(), best, strict=True)
    return tokenizer.decode([filling if id == tokenizer.mask_id else id for id, filling in pairs])


def _answer(model: EncoderDecoder, tokenizer: Tokenizer, source: torch.Tensor) -> str:
    """The most likely text, token by token. Tokens for spans are shown: they say which gap is filled."""
    start, end = model.config.start_id, tokenizer.end_of_text_id
    assert start is not None
    cache = KeyValueCache(model.config, 1, min(model.config.context_length, SAMPLE_TOKENS), model.device)
    written = [start]
    memory: torch.Tensor | None = model.encode(source)
    while len(written) <= cache.capacity and written[-1] != end:
        logits = model(torch.tensor([written[-1:]], device=model.device), memory, cache=cache)
        written.append(int(logits[0, -1, : tokenizer.vocabulary_size].argmax()))
        memory = None
    shown = [id for id in written[1:] if id != end]
    return tokenizer.decode(shown, skip_special=False)
