"""POST /v1/embeddings: a vector for each text, as `rhapsode embed` has it."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.inference.reading import framed
from rhapsode.serving.answers import check_ids
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import EmbeddingRequest
from rhapsode.serving.records import Record
from rhapsode.serving.worker import Worker


async def embeddings(worker: Worker, asked: EmbeddingRequest, record: Record, limits: Limits) -> dict[str, Any]:
    """The vectors: the mean of the last hidden states, at length one.

    Raises:
        InputError: a text is empty or too long, or other dimensions than the model's are asked for.
        QueueFullError: as `Limits.begin`.
    """
    model = worker.model
    size = model.config.hidden_size
    if asked.dimensions not in (None, size):
        raise InputError(f"the vectors of {asked.model} have {size} numbers", where="dimensions")
    given = asked.input
    if isinstance(given, str):
        texts: list[str | list[int]] = [given]
    else:
        ids = [each for each in given if isinstance(each, int)]
        texts = [ids] if ids else [each for each in given if not isinstance(each, int)]
    record.prompts = [text if isinstance(text, str) else model.tokenizer.decode(text) for text in texts]
    sources = []
    for place, text in enumerate(texts):
        if isinstance(text, list):
            check_ids(model, text, "input")
            sources.append(text)
        else:
            sources.append(framed(model.tokenizer, text, model.config.context_length, name=f"input {place + 1}"))
    record.prompt_tokens = sum(map(len, sources))
    limits.begin(record.key, len(sources))
    record.held.callback(limits.end, record.key, len(sources))
    vectors = await worker.run(partial(model.embed, sources))
    data: list[Any] = vectors.tolist()
    if asked.encoding_format == "base64":  # little-endian fp32, as clients unpack it
        data = [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
    return {
        "object": "list",
        "model": asked.model,
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(data)],
        "usage": {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens},
    }
