"""Talking with a model: through its template when it is tuned for chat, else by continuing one growing text.

rhapsode chat runs/mytext
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from rhapsode.base.errors import InputError
from rhapsode.inference.call import Call, Tool, json_spans
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.template import render
from rhapsode.inference.text import Piece

# What no template says of its own accord.
PROBE_PARAMETER = {"type": "string", "description": "qv_meaning"}
PROBE = Tool("qv_probe", "qv_description", {"type": "object", "properties": {"qv_key": PROBE_PARAMETER}})
PROBE_ARGUMENTS = '{"qv_key": "qv_value", "qv_list": [1, {"qv_inner": true}]}'


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    """Text; of a tool, its result. It may be empty where there are calls."""
    calls: tuple[Call, ...] = ()
    """The calls that an assistant made in this turn."""
    name: str | None = None
    """Of a tool's turn: the tool. Left out, it is that of the call."""
    call_id: str | None = None
    """Of a tool's turn: the call that this is the result of."""


def is_tuned_for_chat(model: LanguageModel) -> bool:
    """Whether a model was trained to answer, and not only to continue text.

    A model of Rhapsode says so itself: `objective` in its rhapsode.json is "chat". One made elsewhere counts as tuned
    when it has a chat template, and that template itself writes one of the tokens with which the model ends its text:
    it then ends its turns as the template does. (Base models often carry a template, but end with another token.)
    """
    template = model.tokenizer.chat_template
    if template is None:
        return False
    if model.provenance is not None:
        return model.provenance.get("objective") == "chat"
    return any(id in model.end_ids and name in template for name, id in model.tokenizer.special_tokens.items())


@dataclass(frozen=True)
class CallShape:
    """What a template wants an assistant's turn with calls to look like."""

    arguments: Literal["object", "text"]
    content: Literal["null", "absent", "empty"]
    """What stands for the content where the turn has no text."""

    def message(self, calls: Sequence[Call], content: str = "") -> dict[str, Any]:
        """The turn.

        Raises:
            InputError: the arguments of a call are no JSON object.
        """
        message: dict[str, Any] = {"role": "assistant"}
        if content or self.content != "absent":
            message["content"] = content or {"null": None, "empty": ""}[self.content]
        message["tool_calls"] = []
        for call in calls:
            value = call.value()
            # Models are trained on JSON of one spacing; clients write any.
            arguments = value if self.arguments == "object" else json.dumps(value, ensure_ascii=False)
            function = {"name": call.name, "arguments": arguments}
            message["tool_calls"].append({"id": call.id, "type": "function", "function": function})
        return message


class ChatTemplate:
    """Turns into ids, through the template of a tokenizer."""

    def __init__(self, model: LanguageModel) -> None:
        if model.tokenizer.chat_template is None:
            raise InputError("has no chat template", where=model.where, todo="Continue text with it instead.")
        self.model, self.source = model, model.tokenizer.chat_template

    def ids(self, turns: Sequence[Turn], tools: Sequence[Tool] = ()) -> list[int]:
        """The ids of a conversation, up to where the assistant begins its next turn.

        Whatever stands in the turns and tools is text: a name of a control token in them is taken apart before the
        template sees it, and its parts are encoded one by one, so that only the template's own become control tokens.

        Raises:
            InputError: the template fails, refuses the conversation, or writes no tools or calls where there are some.
        """
        if tools and not self.writes_tools:
            raise self.no_tools("tools")
        plain = [self._message(turn, turns) for turn in turns]
        breaker, mark = self._breaker(json.dumps([plain, [tool.as_json() for tool in tools]], ensure_ascii=False))

        def apart(value: Any, names: Sequence[str] = self._names) -> Any:
            if isinstance(value, str):
                return _taken_apart(value, names, breaker)
            if isinstance(value, dict):
                return {apart(key): apart(each) for key, each in value.items()}
            return [apart(each) for each in value] if isinstance(value, list) else value

        for message in plain:
            # What the model itself wrote may hold tokens that are not special, such as the marks of its thinking.
            own = message["role"] == "assistant"
            for key in message.keys() - {"role", "tool_calls"}:
                message[key] = apart(message[key], self._special_names if own and key == "content" else self._names)
            for call in message.get("tool_calls", ()):
                call["id"], call["function"] = apart(call["id"]), apart(call["function"])
        shown = [{"type": "function", "function": apart(tool.as_json()["function"])} for tool in tools]
        # A template may write JSON in ASCII: there the breaker is an escape.
        text = self.rendered(plain, shown or None, generation=True).replace(mark, breaker)
        return self.model.tokenizer.encode_apart(text.split(breaker))

    def rendered(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, *, generation: bool
    ) -> str:
        """What the template writes, as text.

        Args:
            generation: whether the assistant's next turn is begun.

        Raises:
            InputError: the template fails, or refuses the conversation.
        """
        variables = {"messages": messages, "tools": tools, "add_generation_prompt": generation}
        return render(self.source, self._variables | variables, where=self.model.where)

    def no_tools(self, what: str) -> InputError:
        """Says that the template has no form for `what`."""
        return InputError(
            f"the chat template of {self.model.where} writes no {what}",
            todo="Ask without tools, or use a model whose template has a form for them.",
        )

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template tells the model which tools there are."""
        messages = [{"role": "user", "content": "qv"}]
        try:
            text = self.rendered(messages, [PROBE.as_json()], generation=True)
        except InputError:
            return False
        return PROBE.name in text

    @cached_property
    def call_shape(self) -> CallShape | None:
        """How the template wants to be given calls; None when it writes none.

        Found by trying. Of the shapes in which it writes a call, the one in which it writes the least besides:
        `null` as content may come out as a word, and arguments of the other kind with every quote escaped.
        """
        call = Call(PROBE.name, PROBE_ARGUMENTS, "qvprobe01")
        found: list[tuple[int, CallShape]] = []
        for arguments in ("object", "text"):
            for content in ("null", "absent", "empty"):
                shape = CallShape(arguments, content)
                messages = [{"role": "user", "content": "qv"}, shape.message([call])]
                try:
                    text = self.rendered(messages, [PROBE.as_json()], generation=False)
                except InputError:
                    continue
                if any(PROBE.name in text[:start] for start, _ in json_spans(text, call.value())):
                    found.append((len(text), shape))
        return min(found, key=lambda each: each[0])[1] if found else None

    @cached_property
    def writes_text_beside_calls(self) -> bool:
        """Whether the template still writes the calls of a turn that has text too."""
        shape, call = self.call_shape, Call(PROBE.name, PROBE_ARGUMENTS, "qvprobe01")
        assert shape is not None
        messages = [{"role": "user", "content": "qv"}, shape.message([call], "qvtext")]
        return bool(json_spans(self.rendered(messages, [PROBE.as_json()], generation=False), call.value()))

    def _message(self, turn: Turn, turns: Sequence[Turn]) -> dict[str, Any]:
        """A turn as templates take it."""
        if turn.role == "assistant" and turn.calls:
            if self.call_shape is None:
                raise self.no_tools("tool calls")
            if turn.content and not self.writes_text_beside_calls:
                raise self.no_tools("tool calls in a turn that has text too")
            return self.call_shape.message(turn.calls, turn.content)
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.role == "tool":
            made = (call.name for each in turns for call in each.calls if call.id == turn.call_id)
            name = turn.name if turn.name is not None else next(made, None)
            message |= {key: value for key, value in (("name", name), ("tool_call_id", turn.call_id)) if value}
        return message

    def _breaker(self, conversation: str) -> tuple[str, str]:
        """A character for private use that stands nowhere in the conversation or the template, and its JSON escape."""
        used = conversation + self.source
        marks = ((character, json.dumps(character)[1:-1]) for character in map(chr, range(0xE000, 0xF900)))
        return next(pair for pair in marks if pair[0] not in used and pair[1] not in used)

    @cached_property
    def _names(self) -> list[str]:
        """The names of all tokens that are not made of text, the longest first."""
        added = json.loads(self.model.tokenizer.definition).get("added_tokens") or ()
        return sorted((token["content"] for token in added), key=len, reverse=True)

    @cached_property
    def _special_names(self) -> list[str]:
        return [name for name in self._names if name in self.model.tokenizer.special_tokens]

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """What templates ask for besides the messages."""
        variables: dict[str, Any] = {"documents": None}
        for field in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = self.model.tokenizer.settings.get(field)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                variables[field] = token
        return variables


class Chat:
    """One conversation with a model.

    Args:
        sampling: how replies are drawn; may be replaced at any time.
        system: what a tuned model is told before the conversation; a base model reads it as the beginning of the text.
    """

    def __init__(self, model: LanguageModel, sampling: Sampling, system: str | None = None) -> None:
        self.model, self.sampling = model, sampling
        self.template = ChatTemplate(model) if is_tuned_for_chat(model) else None
        self.opening = [Turn("system", system)] if system else []
        self.turns: list[Turn] = list(self.opening)
        self.forgotten = 0
        """The oldest turns (tuned model) or tokens (base model) that the last prompt had no room for."""

    def say(self, text: str) -> Iterator[Piece]:
        """The reply to `text`, as it is written. Who stops reading it leaves what was written in the conversation.

        Raises:
            InputError: `text` alone is longer than the context.
        """
        yield from self._reply([*self.turns, Turn("user", text)])

    def regenerate(self) -> Iterator[Piece]:
        """Another reply in place of the last one, from the next seed.

        Raises:
            InputError: there is no reply yet.
        """
        if not self.turns or self.turns[-1].role != "assistant":
            raise InputError("there is no reply yet", todo="Say something first.")
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        yield from self._reply(self.turns[:-1])

    def reset(self) -> None:
        """Begin anew."""
        self.turns = list(self.opening)
        self.forgotten = 0

    def transcript(self) -> str:
        """The conversation as text: turn by turn with a tuned model, as the model read it with a base one."""
        if self.template is None:
            return _joined(self.turns)
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.turns)

    def _reply(self, turns: list[Turn]) -> Iterator[Piece]:
        ids = self._prompt(turns)
        text = ""
        for piece in self.model.stream_ids(ids, [self.sampling]):
            text += piece.text
            self.turns = [*turns, Turn("assistant", text)]
            yield piece

    def _prompt(self, turns: list[Turn]) -> list[int]:
        """The ids of as much of the conversation as leaves room for a reply, at most half of the context."""
        context = self.model.config.context_length
        limit = context - min(self.sampling.max_new_tokens, context // 2)
        if self.template is None:
            ids = self.model.tokenizer.encode(_joined(turns))
            self.forgotten = max(0, len(ids) - limit)
            return ids[self.forgotten :] or self.model.encode_prompt("")
        first = len(self.opening)
        while True:
            kept = turns[:first] + turns[first + self.forgotten :]
            ids = self.template.ids(kept)
            if len(ids) <= limit or len(kept) <= first + 2:
                return ids
            self.forgotten += 2  # a user's turn with its answer: templates want them to alternate


def _taken_apart(text: str, names: Sequence[str], breaker: str) -> str:
    """The text with `breaker` inside every name of a control token, whole or begun or ended at its edges."""
    for name in names:
        text = text.replace(name, name[0] + breaker + name[1:])
    if any(text.endswith(name[:size]) for name in names for size in range(1, len(name))):
        text += breaker
    if any(text.startswith(name[-size:]) for name in names for size in range(1, len(name))):
        text = breaker + text
    return text


def _joined(turns: Sequence[Turn]) -> str:
    """The one text that a base model reads. What the user says begins on a line of its own."""
    text = ""
    for turn in turns:
        own_line = turn.role == "user" and turn.content and text and not text.endswith("\n")
        text += ("\n" if own_line else "") + turn.content
    return text
