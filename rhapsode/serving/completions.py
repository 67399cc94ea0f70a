"""POST /v1/completions: texts continued, and how likely the texts themselves were."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.inference.engine import Look, Request
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.text import FinishReason, Likelihood, Piece
from rhapsode.serving.answers import FINISH, Answer, begun, check_ids, room_for, samplings_of, search_of
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import CompletionRequest
from rhapsode.serving.records import Record
from rhapsode.serving.worker import Worker

Columns = dict[str, list[Any]]
"""The dialect's older form of log probabilities: lists beside each other."""


async def completion(worker: Worker, asked: CompletionRequest, record: Record, limits: Limits) -> Answer:
    """The texts asked for, on their way.

    Raises:
        InputError: a prompt does not fit, or the request contradicts itself.
    """
    model = worker.model
    if asked.max_tokens == 0 and not asked.echo:
        raise InputError("nothing is asked for: 0 new tokens, and no echo of the prompt", where="max_tokens")
    texts = _texts(asked)
    prompts = [model.encode_prompt(text) if isinstance(text, str) else text for text in texts]
    for ids in prompts:
        check_ids(model, ids, "prompt")
    most = min(room_for(model, ids, max(1, asked.max_tokens)) for ids in prompts)
    look = Look(asked.logprobs, prompt=asked.echo and asked.logprobs is not None)
    record.prompts = [text if isinstance(text, str) else model.tokenizer.decode(text) for text in texts]
    samplings, search = samplings_of(model, asked, most), search_of(asked, most)
    reader = await begun(worker, record, limits, prompts, samplings, look, search)
    choices = [
        Continuation(model, asked, ids, text, request, record)
        for ids, text, request in zip(prompts, record.prompts, reader.requests, strict=True)
        for _ in range(asked.n)
    ]
    return Answer(record, reader, asked, choices, "text_completion", "text_completion", "cmpl")


def _texts(asked: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts, each a text or ids."""
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    ids = [each for each in prompt if isinstance(each, int)]
    if ids:
        return [ids]
    return [each for each in prompt if not isinstance(each, int)]


class Continuation:
    """One text, and before it its prompt where that is to be repeated."""

    def __init__(
        self,
        model: LanguageModel,
        asked: CompletionRequest,
        prompt: list[int],
        prompt_text: str,
        request: Request,
        record: Record,
    ) -> None:
        self._model, self._asked, self._request, self._record = model, asked, request, record
        self._prompt, self._prompt_text = prompt, prompt_text
        self._text: list[str] = []
        self._ids: list[int] = []
        self._columns = _no_columns()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def opening(self) -> None:
        return None

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        first, text, columns = not self._ids, "", _no_columns()
        if first and self._asked.echo:
            text = self._prompt_text
            for id, likelihood in zip(self._prompt, self._request.prompt, strict=False):
                self._tell(columns, id, likelihood)
            self._offset = len(self._prompt_text)
        written = self._asked.max_tokens > 0
        if written:
            text += piece.text
            if piece.likelihood is not None:
                self._tell(columns, piece.token, piece.likelihood)
        else:
            self._record.completion_tokens -= len(piece.ids)  # written only because the engine always draws one
        self._text.append(text)
        self._ids += piece.ids
        for name, values in columns.items():
            self._columns[name] += values
        part: dict[str, Any] = {"text": text, "logprobs": None if self._asked.logprobs is None else columns}
        if self._asked.return_token_ids:
            part["token_ids"] = [*piece.ids] if written else []
            if first:
                part["prompt_token_ids"] = self._prompt
        return [part]

    def whole(self) -> dict[str, Any]:
        text = "".join(self._text)
        self._record.answers.append(text)
        choice: dict[str, Any] = {"text": text, "logprobs": None if self._asked.logprobs is None else self._columns}
        if self._asked.return_token_ids:
            choice["token_ids"] = self._ids if self._asked.max_tokens > 0 else []
            choice["prompt_token_ids"] = self._prompt
        return choice

    def finish_reason(self, reason: FinishReason) -> str:
        return FINISH[reason] if self._asked.max_tokens > 0 else "length"

    def _tell(self, columns: Columns, id: int, likelihood: Likelihood | None) -> None:
        """Add one token to the lists."""
        columns["tokens"].append(token_name(self._model, id))
        special = id in self._model.tokenizer.special_tokens.values()
        data = b"" if special else self._model.tokenizer.id_to_bytes(id)
        if data and not 0x80 <= data[0] < 0xC0:  # it does not go on with the character before, if that is unfinished
            self._offset += len(self._characters.decode(b"", final=True))
        columns["text_offset"].append(self._offset)
        self._offset += len(self._characters.decode(data))
        columns["token_logprobs"].append(None if likelihood is None else likelihood.log_probability)
        named: dict[str, float] | None = None
        if likelihood is not None:
            named = {}
            for other, value in likelihood.likeliest:  # of two with the same name the likelier one counts
                named.setdefault(token_name(self._model, other), value)
        columns["top_logprobs"].append(named)


def _no_columns() -> Columns:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def token_name(model: LanguageModel, id: int) -> str:
    """A token as the dialect names it: its text, or its bytes where they are no whole characters."""
    data = model.tokenizer.id_to_bytes(id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
