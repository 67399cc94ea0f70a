"""POST /v1/tokenize and /v1/next: what a model makes of a text before it writes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.inference.engine import Look
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling, steps
from rhapsode.serving.answers import begun, check_ids, shaping, usage
from rhapsode.serving.chats import conversation_ids
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import NextRequest, TokenizeRequest
from rhapsode.serving.records import Record
from rhapsode.serving.worker import Worker


async def tokens(worker: Worker, asked: TokenizeRequest, record: Record) -> dict[str, Any]:
    """The ids of a prompt, which may be longer than the context.

    Raises:
        InputError: there is not exactly one of prompt and messages, or as `conversation_ids`.
    """
    model = worker.model
    if (asked.prompt is None) == (asked.messages is None):
        raise InputError("give one of them", where="prompt and messages")
    if asked.messages is not None:
        ids = await conversation_ids(worker, asked.messages, asked.model)
    else:
        ids = model.tokenizer.frame[0] + await asyncio.to_thread(model.tokenizer.encode, asked.prompt or "")
    record.prompt_tokens = len(ids)
    return {
        "count": len(ids),
        "max_model_len": model.config.context_length,
        "tokens": ids,
        "texts": [model.token_text(id) for id in ids],
    }


async def next_token(worker: Worker, asked: NextRequest, record: Record, limits: Limits) -> dict[str, Any]:
    """The probabilities of the next token after each step of sampling, at each temperature.

    Raises:
        InputError: the prompt does not fit, or a token is asked for that there is not.
    """
    model = worker.model
    ids = asked.prompt
    if isinstance(ids, str):
        ids = await asyncio.to_thread(model.encode_prompt, ids)
    check_ids(model, ids, "prompt")
    check_ids(model, asked.tokens, "tokens")
    prompt_length = len(ids) if asked.prompt_length is None else asked.prompt_length
    if prompt_length > len(ids):
        raise InputError(f"there are {len(ids)} tokens", where="prompt_length")
    record.prompts = [asked.prompt if isinstance(asked.prompt, str) else model.tokenizer.decode(ids)]
    reader = await begun(worker, record, limits, [ids], [Sampling(max_new_tokens=1)], Look(logits=True))
    async with aclosing(reader.pieces()) as coming:
        async for piece in coming:
            logits = piece.logits
    assert logits is not None
    record.saw_token()
    told = await asyncio.to_thread(_told, worker.model, asked, ids, prompt_length, logits)
    return {"object": "next", "model": asked.model, **told, "usage": usage(len(ids), 0, reader.requests[0].cached)}


def _told(
    model: LanguageModel, asked: NextRequest, ids: Sequence[int], prompt_length: int, logits: np.ndarray
) -> dict[str, Any]:
    """The likeliest tokens by their logits (vocabulary,), and how likely each is after each step."""
    samplings = [Sampling(**shaping(asked), temperature=temperature) for temperature in asked.temperatures]
    best = np.argsort(-logits, kind="stable")[: asked.top].tolist()
    shown = [*best, *(id for id in dict.fromkeys(asked.tokens) if id not in best)]
    special = frozenset(model.tokenizer.special_tokens.values())
    tokens = [
        {
            "id": id,
            "text": model.token_text(id),
            "bytes": None if id in special else list(model.tokenizer.id_to_bytes(id)),
            "special": id in special,
            "end": id in model.end_ids,
        }
        for id in shown
    ]
    distributions = []
    for sampling in samplings:
        told = [
            {
                "name": name,
                "probabilities": probabilities[shown].tolist(),
                "others": max(0.0, 1.0 - float(probabilities[shown].sum())),
            }
            for name, probabilities in steps(logits, sampling, ids, prompt_length=prompt_length)
        ]
        distributions.append({"temperature": sampling.temperature, "steps": told})
    return {"tokens": tokens, "distributions": distributions}
