"""An answer on its way: whole, or as server-sent events; what both kinds of completion have in common."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.inference.beams import BeamSearch
from rhapsode.inference.engine import Look
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.styles import STYLES
from rhapsode.inference.text import FinishReason, Piece
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import ResponseFormat, Sampled, Shaped
from rhapsode.serving.records import Record
from rhapsode.serving.worker import Reader, Worker

FINISH: dict[FinishReason, str] = {"stop": "stop", "end of text": "stop", "length": "length", "context": "length"}
SHAPING = (
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
CLIENT_GONE = 499  # as nginx has it; nobody reads it


def shaping(asked: Shaped, *names: str) -> dict[str, Any]:
    """The fields of `Sampling` that a request sets, by itself or by its style; `names` are those besides `SHAPING`."""
    values = {name: getattr(asked, name) for name in (*SHAPING, *names)}
    style = STYLES[asked.style] if asked.style is not None else {}
    values |= {name: value for name, value in style.items() if name in values and name not in asked.model_fields_set}
    return values | {"logit_bias": asked.logit_bias or {}}


def samplings_of(model: LanguageModel, asked: Sampled, most: int, **fields: Any) -> list[Sampling]:
    """How each of the texts asked for is drawn, each by a seed of its own, or what it must be where it is searched.

    Raises:
        InputError: the settings contradict each other or `fields`, or name tokens that there are not.
    """
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    drawn = {} if asked.beams > 1 else shaping(asked, "temperature") | {"max_new_tokens": most}
    first = Sampling(
        **drawn,
        regex=asked.regex,
        grammar=asked.grammar,
        choice=tuple(asked.choice or ()),
        json_schema=_schema(asked.response_format),
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
        seed=seed,
    )
    if fields and first.constraint is not None:
        raise InputError("cannot be held to while tools may be called", where=first.constraint.kind)
    check_ids(model, asked.stop_token_ids or (), "stop_token_ids")
    stops = [model.tokenizer.id_to_token(id) for id in asked.stop_token_ids or ()]
    stop_tokens = (*fields.pop("stop_tokens", ()), *stops)
    first = replace(first, **fields, stop_tokens=stop_tokens)
    return [replace(first, seed=seed + number) for number in range(asked.n)]


def search_of(asked: Sampled, most: int) -> BeamSearch | None:
    """How the texts asked for are searched for; None where they are drawn.

    Raises:
        InputError: a field is for the one, and the texts are to come by the other.
    """
    if asked.beams == 1:
        if asked.length_penalty is not None:
            raise InputError("is for searches", where="length_penalty", todo="Ask for more than one of beams too.")
        return None
    for name in ("style", "temperature", *SHAPING, "logit_bias", "logprobs"):
        if getattr(asked, name) != type(asked).model_fields[name].default:
            raise InputError("is for texts that are drawn, and beams search", where=name)
    if asked.n > asked.beams:
        raise InputError(f"{asked.beams} beams find no {asked.n} texts", where="n")
    penalty = 1.0 if asked.length_penalty is None else float(asked.length_penalty)
    return BeamSearch(asked.beams, penalty, max_new_tokens=most)


def _schema(asked: ResponseFormat | None) -> str | None:
    """The JSON schema of what a text must be; None for any text."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return '{"type": "object"}'
    if asked.json_schema is None:
        raise InputError("needs json_schema", where="response_format")
    return json.dumps(asked.json_schema.schema_)


def room_for(model: LanguageModel, prompt: Sequence[int], wanted: int | None, field: str = "max_tokens") -> int:
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
            where=field,
        )
    return wanted


def check_ids(model: LanguageModel, ids: Sequence[int], field: str) -> None:
    """Refuse ids that are no tokens.

    Raises:
        InputError: one of them is not.
    """
    if max(ids, default=0) >= model.tokenizer.vocabulary_size:
        raise InputError(f"there is no token {max(ids)}", where=field)


class Choice(Protocol):
    """One text of an answer, as it grows."""

    def opening(self) -> dict[str, Any] | None:
        """What a stream says of it before there is anything of it; None for nothing."""
        ...

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        """What a stream says of a piece, the finish reason aside."""
        ...

    def whole(self) -> dict[str, Any]:
        """All of it, when all its pieces have come."""
        ...

    def finish_reason(self, reason: FinishReason) -> str:
        """Why it ended, as the dialect has it."""
        ...


@dataclass
class Answer:
    """Texts that are being written for a request.

    Args:
        choices: one for each text, in the order of the reader's rows.
        streamed: what a stream's events call themselves; whole answers: `called`.
    """

    record: Record
    reader: Reader
    asked: Sampled
    choices: Sequence[Choice]
    called: str
    streamed: str
    prefix: str

    def __post_init__(self) -> None:
        self._frame = {"id": f"{self.prefix}-{self.record.id}", "created": int(time.time()), "model": self.asked.model}

    async def whole(self) -> dict[str, Any]:
        """The answer when all of it is written."""
        reasons = [""] * len(self.choices)
        async with aclosing(self._pieces()) as coming:
            async for piece in coming:
                self.choices[piece.row].parts(piece)
                if piece.finish_reason is not None:
                    reasons[piece.row] = self.choices[piece.row].finish_reason(piece.finish_reason)
        choices = [
            {"index": index, **choice.whole(), "finish_reason": reason}
            for index, (choice, reason) in enumerate(zip(self.choices, reasons, strict=True))
            if reason  # a search may find fewer texts than were asked for, where there are no more
        ]
        return {**self._frame, "object": self.called, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[str]:
        """The answer piece by piece, as server-sent events; the last one is [DONE]."""
        frame = self._frame | {"object": self.streamed}
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        extra = {"usage": None} if with_usage else {}

        def event(index: int, choice: dict[str, Any], reason: str | None) -> str:
            choices = [{"index": index, **choice, "finish_reason": reason}]
            return _event({**frame, "choices": choices, **extra})

        searched = self.asked.beams > 1  # each text comes in one piece, and there may be fewer than were asked for
        for index, choice in enumerate(self.choices):
            if not searched and (opening := choice.opening()) is not None:
                yield event(index, opening, None)
        try:
            async with aclosing(self._pieces()) as coming:
                async for piece in coming:
                    choice = self.choices[piece.row]
                    if searched and (opening := choice.opening()) is not None:
                        yield event(piece.row, opening, None)
                    parts = choice.parts(piece)
                    for part in parts[:-1]:
                        yield event(piece.row, part, None)
                    reason = None if piece.finish_reason is None else choice.finish_reason(piece.finish_reason)
                    yield event(piece.row, parts[-1], reason)
        except RhapsodeError as error:
            kind = "invalid_request_error" if isinstance(error, InputError) else "server_error"
            yield _event({"error": {"message": error.message, "type": kind, "param": error.where, "code": None}})
            return
        if with_usage:
            yield _event({**frame, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    async def _pieces(self) -> AsyncGenerator[Piece]:
        """The pieces, each noted in the record."""
        async with aclosing(self.reader.pieces()) as coming:
            async for piece in coming:
                self.record.saw_token()
                self.record.completion_tokens += len(piece.ids)
                if piece.finish_reason is not None:
                    self.record.finish_reasons.append(piece.finish_reason)
                yield piece

    def _usage(self) -> dict[str, Any]:
        record = self.record
        return usage(record.prompt_tokens, record.completion_tokens, self._cached())

    def _cached(self) -> int:
        self.record.cached_tokens = sum(request.cached for request in self.reader.requests)
        return self.record.cached_tokens


def usage(prompt: int, written: int, cached: int) -> dict[str, Any]:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def begun(
    worker: Worker,
    record: Record,
    limits: Limits,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    look: Look,
    search: BeamSearch | None = None,
) -> Reader:
    """Ask for texts, within what the request's key may ask for; errors as `Worker.submit` and `Limits.begin`."""
    for sampling in samplings[:1]:  # they differ in their seeds
        check_ids(worker.model, [int(id) for id in sampling.logit_bias], "logit_bias")
    texts = len(prompts) * (len(samplings) if search is None else search.beams)
    limits.begin(record.key, texts)
    record.held.callback(limits.end, record.key, texts)
    record.prompt_tokens = sum(map(len, prompts))
    return await worker.submit(prompts, samplings, look=look, search=search, deadline=limits.deadline())


async def answered(answer: Answer, request: Request) -> Response:
    """The answer as a stream, or whole; nothing more is written for a client that has gone."""
    if answer.asked.stream:
        return StreamingResponse(answer.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    whole, gone = asyncio.create_task(answer.whole()), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=CLIENT_GONE)
    finally:
        whole.cancel()
        gone.cancel()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
