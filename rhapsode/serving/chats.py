"""POST /v1/chat/completions: the next answer in a conversation, through the model's own template."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.inference.chat import ChatTemplate, Turn, is_tuned_for_chat
from rhapsode.inference.engine import Look
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.text import FinishReason, Piece
from rhapsode.serving.answers import FINISH, Answer, begun, room_for, samplings_of
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import ChatRequest, Message, ResponseFormat
from rhapsode.serving.records import Record
from rhapsode.serving.worker import Worker


async def chat(worker: Worker, asked: ChatRequest, record: Record, limits: Limits) -> Answer:
    """The answers asked for, on their way.

    Raises:
        InputError: the model is not tuned for chat, the conversation does not fit, or the request contradicts itself.
    """
    model = worker.model
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InputError("needs logprobs to be true", where="top_logprobs")
    prompt = await conversation_ids(model, asked.messages, asked.model)
    record.prompts = [message.text() for message in asked.messages]
    wanted, field = asked.max_tokens, "max_tokens"
    if asked.max_completion_tokens is not None:
        wanted, field = asked.max_completion_tokens, "max_completion_tokens"
    samplings = samplings_of(asked, room_for(model, prompt, wanted, field), json_schema=_form(asked.response_format))
    look = Look((asked.top_logprobs or 0) if asked.logprobs else None)
    reader = await begun(worker, record, limits, [prompt], samplings, look)
    choices = [Reply(model, asked, prompt, record) for _ in samplings]
    return Answer(record, reader, asked, choices, "chat.completion", "chat.completion.chunk", "chatcmpl")


async def conversation_ids(model: LanguageModel, messages: Sequence[Message], name: str) -> list[int]:
    """The ids of a conversation, up to where the assistant begins its next turn.

    Raises:
        InputError: the model is not tuned for chat, or its template refuses the conversation.
    """
    if not is_tuned_for_chat(model):
        raise InputError("is not tuned for chat", where=name, todo="Ask /v1/completions to continue a text.")
    turns = [Turn(message.role, message.text()) for message in messages if message.role != "tool"]
    return await asyncio.to_thread(ChatTemplate(model).ids, turns)


def _form(asked: ResponseFormat | None) -> str | None:
    """The JSON schema of what an answer must be; None for any text."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return '{"type": "object"}'
    if asked.json_schema is None:
        raise InputError("needs json_schema", where="response_format")
    return json.dumps(asked.json_schema.schema_)


class Reply:
    """One answer of the assistant."""

    def __init__(self, model: LanguageModel, asked: ChatRequest, prompt: list[int], record: Record) -> None:
        self._model, self._asked, self._prompt, self._record = model, asked, prompt, record
        self._content: list[str] = []
        self._likelihoods: list[dict[str, Any]] = []
        self._ids: list[int] = []

    def opening(self) -> dict[str, Any]:
        opening: dict[str, Any] = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        if self._asked.return_token_ids:
            opening |= {"token_ids": [], "prompt_token_ids": self._prompt}
        return opening

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        self._content.append(piece.text)
        self._ids.append(piece.token)
        told = None
        if piece.likelihood is not None:
            self._likelihoods.append(self._token(piece))
            told = {"content": self._likelihoods[-1:]}
        part: dict[str, Any] = {"delta": {"content": piece.text}, "logprobs": told}
        if self._asked.return_token_ids:
            part["token_ids"] = [piece.token]
        return [part]

    def whole(self) -> dict[str, Any]:
        content = "".join(self._content)
        self._record.answers.append(content)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": {"content": self._likelihoods} if self._asked.logprobs else None,
        }
        if self._asked.return_token_ids:
            choice |= {"token_ids": self._ids, "prompt_token_ids": self._prompt}
        return choice

    def finish_reason(self, reason: FinishReason) -> str:
        return FINISH[reason]

    def _token(self, piece: Piece) -> dict[str, Any]:
        control = frozenset(self._model.tokenizer.special_tokens.values())

        def one(id: int, log_probability: float) -> dict[str, Any]:
            data = None if id in control else list(self._model.tokenizer.id_to_bytes(id))  # control tokens are no text
            return {"token": self._model.token_text(id), "logprob": log_probability, "bytes": data}

        assert piece.likelihood is not None
        likeliest = [one(*each) for each in piece.likelihood.likeliest]
        return {**one(piece.token, piece.likelihood.log_probability), "top_logprobs": likeliest}
