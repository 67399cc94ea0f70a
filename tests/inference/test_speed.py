"""What is counted is what is read; what is measured is what was asked for."""

from __future__ import annotations

import pytest

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.speed import Speed, measure, weight_bytes


def test_bytes_of_a_step(by_characters: LanguageModel) -> None:
    model = by_characters.decoder()
    rows, width = model.config.vocabulary_size, model.config.hidden_size
    assert not model.config.tied_embeddings
    assert weight_bytes(model) == 4 * (model.config.parameters - rows * width)
    speeds = list(
        measure(model.config, by_characters.step, (1, 3), weights=weight_bytes(model), prompt_tokens=10, new_tokens=4)
    )
    assert [speed.texts for speed in speeds] == [1, 3]
    of_a_token = 4 * 2 * 2 * 2 * 8  # bytes, keys and values, layers, heads, size of a head
    assert [speed.bytes_read for speed in speeds] == [weight_bytes(model) + texts * 12 * of_a_token for texts in (1, 3)]
    assert all(speed.prefill > 0 and speed.decode > 0 for speed in speeds)
    assert Speed(4, 1.0, 20.0, 1000).bandwidth == 5000.0  # five steps a second
    with pytest.raises(InputError, match="60 \\+ 5 tokens exceed the model's context of 64"):
        list(measure(model.config, by_characters.step, (1,), weights=0, prompt_tokens=60, new_tokens=5))
