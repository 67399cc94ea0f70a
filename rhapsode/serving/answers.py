"""From a request to the texts, and from their pieces to what the dialect calls a completion."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.inference.chat import ChatTemplate, Turn, is_tuned_for_chat
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.text import Piece
from rhapsode.serving.messages import ChatRequest, CompletionRequest, ResponseFormat, Sampled
from rhapsode.serving.worker import Reader, Worker
from rhapsode.tokenizer.tokenizer import TURN_END

FINISH = {"stop": "stop", "end of text": "stop", "length": "length", "context": "length"}
SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def sampling_of(asked: Sampled, most: int, **fields: Any) -> list[Sampling]:
    """How each of the texts asked for is drawn; each has a seed of its own."""
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    values = {name: getattr(asked, name) for name in SAME_NAMES}
    bias = {id: float(value) for id, value in (asked.logit_bias or {}).items()}
    first = Sampling(**values, logit_bias=bias, stop=stop, seed=seed, max_new_tokens=most, **fields)
    return [replace(first, seed=seed + number) for number in range(asked.n)]


def _room(model: LanguageModel, prompt: list[int], wanted: int | None) -> int:
    """How many tokens may be written.

    Raises:
        InputError: prompt and new tokens together are more than the context.
    """
    left = model.config.context_length - len(prompt) + 1
    if wanted is None:
        return max(1, left)
    if wanted > left:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {wanted} new ones are more than the model's context of "
            f"{model.config.context_length}",
            where="max_tokens",
        )
    return wanted


async def completion(worker: Worker, asked: CompletionRequest) -> Answer:
    """The answer to POST /v1/completions."""
    model = worker.model
    if isinstance(asked.prompt, str):
        prompt = model.encode_prompt(asked.prompt)
    else:
        prompt = asked.prompt
        if max(prompt) >= model.tokenizer.vocabulary_size:
            raise InputError(f"there is no token {max(prompt)}", where="prompt")
    samplings = sampling_of(asked, _room(model, prompt, asked.max_tokens))
    reader = await worker.submit(prompt, samplings, log_probabilities=asked.logprobs)

    def choice(piece: Piece | None, text: str, pieces: list[Piece]) -> dict[str, Any]:
        logprobs = None if asked.logprobs is None else _completion_logprobs(model, pieces)
        return {"text": text, "logprobs": logprobs}

    return Answer(worker, reader, asked, "text_completion", "cmpl", choice, choice)


async def chat(worker: Worker, asked: ChatRequest) -> Answer:
    """The answer to POST /v1/chat/completions."""
    model = worker.model
    if not is_tuned_for_chat(model):
        raise InputError("is not tuned for chat", where=asked.model, todo="Ask /v1/completions to continue a text.")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InputError("needs logprobs to be true", where="top_logprobs")
    turns = [Turn(message.role, message.text()) for message in asked.messages]
    prompt = await asyncio.to_thread(ChatTemplate(model).ids, turns)
    wanted = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    stops = (TURN_END,) if TURN_END in model.tokenizer.special_tokens else ()
    form = _form(asked.response_format)
    samplings = sampling_of(asked, _room(model, prompt, wanted), stop_tokens=stops, json_schema=form)
    count = (asked.top_logprobs or 0) if asked.logprobs else None
    reader = await worker.submit(prompt, samplings, log_probabilities=count)

    def logprobs(pieces: list[Piece]) -> dict[str, Any] | None:
        return {"content": [_token(model, piece) for piece in pieces]} if asked.logprobs else None

    def whole(piece: Piece | None, text: str, pieces: list[Piece]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": logprobs(pieces)}

    def part(piece: Piece | None, text: str, pieces: list[Piece]) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""} if piece is None else {"content": text}
        return {"delta": delta, "logprobs": logprobs(pieces)}

    return Answer(worker, reader, asked, "chat.completion", "chatcmpl", whole, part)


def _form(asked: ResponseFormat | None) -> str | None:
    """The JSON schema of what an answer must be; None for any text."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return '{"type": "object"}'
    if asked.json_schema is None:
        raise InputError("needs json_schema", where="response_format")
    return json.dumps(asked.json_schema.schema_)


@dataclass
class Answer:
    """An answer on its way, to be read whole or as it is written.

    Args:
        whole_choice: what one text becomes in a whole answer, besides its index and finish reason; of (None, the text,
            its pieces).
        part_choice: the same of one piece in a stream; of None at the beginning.
    """

    worker: Worker
    reader: Reader
    asked: CompletionRequest | ChatRequest
    object: str
    prefix: str
    whole_choice: Callable[[Piece | None, str, list[Piece]], dict[str, Any]]
    part_choice: Callable[[Piece | None, str, list[Piece]], dict[str, Any]]

    def __post_init__(self) -> None:
        self._frame = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.object,
            "created": int(time.time()),
            "model": self.asked.model,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer when all of it is written."""
        pieces: list[list[Piece]] = [[] for _ in range(self.asked.n)]
        async with aclosing(self.reader.pieces()) as coming:
            async for piece in coming:
                pieces[piece.row].append(piece)
        choices = []
        for index, mine in enumerate(pieces):
            text = "".join(piece.text for piece in mine)
            reason = FINISH[mine[-1].finish_reason or "stop"]
            choices.append({"index": index, **self.whole_choice(None, text, mine), "finish_reason": reason})
        return {**self._frame, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[str]:
        """The answer piece by piece, as server-sent events; the last one is [DONE]."""
        chat = self.object == "chat.completion"
        frame = self._frame | ({"object": "chat.completion.chunk"} if chat else {})
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        extra = {"usage": None} if with_usage else {}

        def event(index: int, choice: dict[str, Any], reason: str | None) -> str:
            choices = [{"index": index, **choice, "finish_reason": reason}]
            return f"data: {json.dumps({**frame, 'choices': choices, **extra}, ensure_ascii=False)}\n\n"

        if chat:
            for index in range(self.asked.n):
                yield event(index, self.part_choice(None, "", []), None)
        try:
            async with aclosing(self.reader.pieces()) as coming:
                async for piece in coming:
                    reason = None if piece.finish_reason is None else FINISH[piece.finish_reason]
                    yield event(piece.row, self.part_choice(piece, piece.text, [piece]), reason)
        except RhapsodeError as error:
            told = {"error": {"message": error.message, "type": "server_error", "param": None, "code": None}}
            yield f"data: {json.dumps(told)}\n\n"
            return
        if with_usage:
            yield f"data: {json.dumps({**frame, 'choices': [], 'usage': self._usage()})}\n\n"
        yield "data: [DONE]\n\n"

    def _usage(self) -> dict[str, Any]:
        texts = self.reader.request.texts
        prompt = texts[0].prompt_length
        written = sum(len(text.ids) - text.prompt_length for text in texts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": self.reader.request.cached},
        }


def _token(model: LanguageModel, piece: Piece) -> dict[str, Any]:
    control = frozenset(model.tokenizer.special_tokens.values())

    def one(id: int, log_probability: float) -> dict[str, Any]:
        data = None if id in control else list(model.tokenizer.id_to_bytes(id))  # control tokens are no text
        return {"token": model.token_text(id), "logprob": log_probability, "bytes": data}

    assert piece.log_probability is not None
    return {**one(piece.token, piece.log_probability), "top_logprobs": [one(*each) for each in piece.likeliest]}


def _completion_logprobs(model: LanguageModel, pieces: list[Piece]) -> dict[str, Any]:
    """The older form, as lists beside each other."""
    tokens = [model.token_text(piece.token) for piece in pieces]
    offsets = [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [piece.log_probability for piece in pieces],
        "top_logprobs": [{model.token_text(id): value for id, value in piece.likeliest} for piece in pieces],
        "text_offset": offsets[: len(tokens)],
    }
