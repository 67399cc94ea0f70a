"""POST /v1/chat/completions: the next answer in a conversation, through the model's own template."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.inference.call import Call, Tool
from rhapsode.inference.call_reader import ToolReader
from rhapsode.inference.chat import Turn, is_tuned_for_chat
from rhapsode.inference.engine import Look
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.text import FinishReason, Piece
from rhapsode.serving.answers import FINISH, Answer, begun, room_for, samplings_of, search_of
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import ChatRequest, Message
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
    tools, choice = _tools(asked)
    prompt = await conversation_ids(worker, asked.messages, asked.model, tools)
    record.prompts = [message.text() for message in asked.messages]
    wanted, field = asked.max_tokens, "max_tokens"
    if asked.max_completion_tokens is not None:
        wanted, field = asked.max_completion_tokens, "max_completion_tokens"
    fields: dict[str, Any] = {}
    form = None
    if tools:
        form = await asyncio.to_thread(lambda: worker.tool_format)
        fields = {
            "grammar": form.grammar(tools, choice, asked.parallel_tool_calls),
            "stop_tokens": form.stops,
            "shown_tokens": form.shown,
        }
    most = room_for(model, prompt, wanted, field)
    samplings, search = samplings_of(model, asked, most, **fields), search_of(asked, most)
    look = Look((asked.top_logprobs or 0) if asked.logprobs else None)
    reader = await begun(worker, record, limits, [prompt], samplings, look, search)
    choices = [Reply(model, asked, prompt, record, form.reader() if form else None) for _ in samplings]
    return Answer(record, reader, asked, choices, "chat.completion", "chat.completion.chunk", "chatcmpl")


async def conversation_ids(
    worker: Worker, messages: Sequence[Message], name: str, tools: Sequence[Tool] = ()
) -> list[int]:
    """The ids of a conversation, up to where the assistant begins its next turn.

    Raises:
        InputError: the model is not tuned for chat, or its template refuses the conversation.
    """
    if not is_tuned_for_chat(worker.model):
        raise InputError("is not tuned for chat", where=name, todo="Ask /v1/completions to continue a text.")
    turns = [_turn(message) for message in messages]
    return await asyncio.to_thread(lambda: worker.template.ids(turns, tools))


def _turn(message: Message) -> Turn:
    calls = (Call(call.function.name, call.function.arguments, call.id) for call in message.tool_calls or ())
    role = "system" if message.role == "developer" else message.role
    return Turn(role, message.text(), tuple(calls), message.name, message.tool_call_id)


def _tools(asked: ChatRequest) -> tuple[list[Tool], str]:
    """The tools there are, and which are called: "none", "auto", "required", or the name of one."""
    choice = asked.tool_choice
    if not asked.tools:
        if choice not in (None, "none"):
            raise InputError("there are no tools", where="tool_choice")
        return [], "none"
    functions = [tool.function for tool in asked.tools]
    tools = [
        Tool(each.name, each.description or "", {"properties": {}} if each.parameters is None else each.parameters)
        for each in functions
    ]
    return tools, choice if isinstance(choice, str) else "auto" if choice is None else choice.function.name


class Reply:
    """One answer of the assistant: text, calls of tools, or both.

    Args:
        reader: finds the calls; None where there are no tools.
    """

    def __init__(
        self, model: LanguageModel, asked: ChatRequest, prompt: list[int], record: Record, reader: ToolReader | None
    ) -> None:
        self._model, self._asked, self._prompt, self._record, self._reader = model, asked, prompt, record, reader
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._likelihoods: list[dict[str, Any]] = []
        self._ids: list[int] = []

    def opening(self) -> dict[str, Any]:
        opening: dict[str, Any] = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        if self._asked.return_token_ids:
            opening |= {"token_ids": [], "prompt_token_ids": self._prompt}
        return opening

    def parts(self, piece: Piece) -> list[dict[str, Any]]:
        deltas = [self._delta(found) for found in self._found(piece)]
        self._ids += piece.ids
        told = None
        if piece.likelihood is not None:
            self._likelihoods.append(self._token(piece))
            told = {"content": self._likelihoods[-1:]}
        first: dict[str, Any] = {"delta": deltas[0] if deltas else {}, "logprobs": told}
        if self._asked.return_token_ids:
            first["token_ids"] = [*piece.ids]
        return [first, *({"delta": delta, "logprobs": None} for delta in deltas[1:])]

    def whole(self) -> dict[str, Any]:
        content = "".join(self._content)
        self._record.answers.append(content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            calls = [{name: value for name, value in call.items() if name != "index"} for call in self._calls]
            message |= {"content": content or None, "tool_calls": calls}
        choice: dict[str, Any] = {
            "message": message,
            "logprobs": {"content": self._likelihoods} if self._asked.logprobs else None,
        }
        if self._asked.return_token_ids:
            choice |= {"token_ids": self._ids, "prompt_token_ids": self._prompt}
        return choice

    def finish_reason(self, reason: FinishReason) -> str:
        return "tool_calls" if self._calls and FINISH[reason] == "stop" else FINISH[reason]

    def _found(self, piece: Piece) -> list[str | Call]:
        """Text and calls that are certain with a piece."""
        if self._reader is None:
            return [piece.text]
        found = self._reader.push(piece.text)
        return found if piece.finish_reason is None else [*found, *self._reader.flush()]

    def _delta(self, found: str | Call) -> dict[str, Any]:
        """What a stream says of it; it is noted for the whole."""
        if isinstance(found, str):
            self._content.append(found)
            return {"content": found}
        # Nine letters and digits: some templates take no other ids back.
        id = found.id or secrets.token_hex(5)[:9]
        function = {"name": found.name, "arguments": found.arguments}
        self._calls.append({"index": len(self._calls), "id": id, "type": "function", "function": function})
        return {"tool_calls": self._calls[-1:]}

    def _token(self, piece: Piece) -> dict[str, Any]:
        control = frozenset(self._model.tokenizer.special_tokens.values())

        def one(id: int, log_probability: float) -> dict[str, Any]:
            data = None if id in control else list(self._model.tokenizer.id_to_bytes(id))  # control tokens are no text
            return {"token": self._model.token_text(id), "logprob": log_probability, "bytes": data}

        assert piece.likelihood is not None
        likeliest = [one(*each) for each in piece.likelihood.likeliest]
        return {**one(piece.token, piece.likelihood.log_probability), "top_logprobs": likeliest}
