"""What a model writes along the way of its training, to look at: a text, a text with its gaps filled, a translation."""

from __future__ import annotations

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel

SAMPLE_TOKENS = 120


def write_sample(writer: LanguageModel, prompt: str, temperature: float, seed: int) -> str:
    """A decoder's continuation of `prompt`; an encoder's fillings of its gaps; what an encoder-decoder makes of it.

    Where the prompt cannot be used (no gap in it, too long), the sample says so: that is no reason to stop a training.
    """
    try:
        if writer.config.kind == "decoder":
            return writer.generate(prompt, temperature=temperature, max_new_tokens=SAMPLE_TOKENS, seed=seed).text
        if writer.config.kind == "encoder":
            return writer.fill_mask(prompt, top=1).text
        (translation,) = writer.translations([prompt], beams=1, max_new_tokens=SAMPLE_TOKENS)
    except InputError as error:
        return f"({error})"
    written = [id for id in translation.ids if id not in writer.end_ids]
    # Tokens for spans are shown: they say which gap is filled.
    return writer.tokenizer.decode(written, skip_special=False)
