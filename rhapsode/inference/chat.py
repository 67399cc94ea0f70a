"""Talking with a model: through its template when it is tuned for chat, else by continuing one growing text.

rhapsode chat runs/mytext
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.template import render
from rhapsode.inference.text import Piece


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Literal["system", "user", "assistant"]
    content: str


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


class ChatTemplate:
    """Turns into ids, through the template of a tokenizer."""

    def __init__(self, model: LanguageModel) -> None:
        if model.tokenizer.chat_template is None:
            raise InputError("has no chat template", where=model.where, todo="Continue text with it instead.")
        self.model, self.source = model, model.tokenizer.chat_template

    def ids(self, turns: Sequence[Turn]) -> list[int]:
        """The ids of a conversation, up to where the assistant begins its next turn.

        Whatever stands in the turns is text: a name of a control token in them is taken apart before the template
        sees it, and its parts are encoded one by one, so that only the template's own become control tokens.

        Raises:
            InputError: the template fails, or refuses the conversation.
        """
        breaker = self._unused_character(turns)
        messages = [asdict(turn) | {"content": self._taken_apart(turn, breaker)} for turn in turns]
        variables = self._variables | {"messages": messages, "add_generation_prompt": True}
        text = render(self.source, variables, where=self.model.where)
        ids: list[int] = []
        for part in text.split(breaker):
            ids += self.model.tokenizer.encode(part, special=True)
        return ids

    def _taken_apart(self, turn: Turn, breaker: str) -> str:
        """The content with `breaker` inside every name of a control token, whole or begun or ended at its edges."""
        # What the model itself wrote may hold tokens that are not special, such as the marks of its thinking.
        names = self._special_names if turn.role == "assistant" else self._names
        content = turn.content
        for name in names:
            content = content.replace(name, name[0] + breaker + name[1:])
        if any(content.endswith(name[:size]) for name in names for size in range(1, len(name))):
            content += breaker
        if any(content.startswith(name[-size:]) for name in names for size in range(1, len(name))):
            content = breaker + content
        return content

    def _unused_character(self, turns: Sequence[Turn]) -> str:
        """A character for private use that stands nowhere in the conversation or the template."""
        used = set(self.source).union(*(turn.content for turn in turns))
        return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in used)

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
        variables: dict[str, Any] = {"tools": None, "documents": None}
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


def _joined(turns: Sequence[Turn]) -> str:
    """The one text that a base model reads. What the user says begins on a line of its own."""
    text = ""
    for turn in turns:
        own_line = turn.role == "user" and turn.content and text and not text.endswith("\n")
        text += ("\n" if own_line else "") + turn.content
    return text
