"""Calls of tools: a grammar that holds a model to them, and a reader that finds them in what it writes.

    form = ToolFormat.of(ChatTemplate(model))
    sampling = Sampling(grammar=form.grammar(tools), stop_tokens=form.stops, shown_tokens=form.shown)
    reader = form.reader()
    for piece in model.stream_ids(ids, [sampling]):
        found = reader.push(piece.text)  # text, and calls as they become complete

The form of the calls is the model's own (`call_form`). Where control tokens are part of it, `shown_tokens` lets them
stand in the text by their names, so that the reader sees nothing but text. A model that is held to the grammar cannot
spell the name of the one that begins a call, so that no text is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from llguidance import LLMatcher

from rhapsode.base.errors import InputError, nearest
from rhapsode.inference.call import Tool
from rhapsode.inference.call_form import ID, NUMBER, CallForm
from rhapsode.inference.call_reader import ToolReader
from rhapsode.inference.chat import ChatTemplate
from rhapsode.inference.matching import LIMITS, LONGEST

AUTO, REQUIRED, NONE = "auto", "required", "none"
INDENTATION = r"\n {0,64}| "  # what may stand between the parts of JSON on several lines


class ToolFormat:
    """How one model calls tools.

    Args:
        form: of its calls.
        special_tokens: the id of each control token.
        end_ids: ids with which the model ends a text.

    Attributes:
        stops: control tokens that end the assistant's turn: what is sampled stops at them.
        shown: control tokens that the reader has to see in the text.
    """

    def __init__(self, form: CallForm, special_tokens: dict[str, int], end_ids: Iterable[int]) -> None:
        self.form, self._ids = form, special_tokens
        self.stops, self.shown = form.stops, form.shown
        # Those with which the model ends a text may stand wherever the grammar lets the text end.
        ends = {*end_ids}
        self._other_stops = [special_tokens[name] for name in form.stops if special_tokens[name] not in ends]
        of_form = {*form.stops, *form.shown}
        self._others = [id for name, id in special_tokens.items() if name not in of_form and id not in ends]

    @classmethod
    def of(cls, template: ChatTemplate) -> ToolFormat:
        """The format of a model, learned from its template.

        Raises:
            InputError: the template does not tell the model of tools, or writes no calls that can be read back.
        """
        if not template.writes_tools:
            raise template.no_tools("tools")
        model = template.model
        return cls(CallForm.of(template), model.tokenizer.special_tokens, model.end_ids)

    def grammar(self, tools: Sequence[Tool], choice: str = AUTO, parallel: bool = True) -> str:
        """What an answer may be, in Lark's form as llguidance has it.

        Args:
            choice: "auto" for any text, and at its end calls or none; "required" for calls and no text; "none" for
                text and no calls; else the name of the tool that is called, once.
            parallel: whether there may be several calls.

        Raises:
            InputError: there is no such tool, two have the same name, or the schema of one cannot be held to.
        """
        names = [tool.name for tool in tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError("is there twice", where=f"tool {twice}")
        if choice == NONE:
            return "\n".join(self._text_rules(calls=False))
        if choice not in (AUTO, REQUIRED):
            if choice not in names:
                todo = nearest(choice, names) if names else None
                raise InputError(f"there is no tool {choice!r}", where="tool_choice", todo=todo)
            tools, parallel = [tool for tool in tools if tool.name == choice], False
        if not tools:
            raise InputError("there are none", where="tools", todo="Name at least one.")
        grammar = "\n".join(self._rules(tools, choice == AUTO, self.form.between if parallel else None))
        if len(grammar) > LONGEST:
            raise InputError(f"their schemas are longer than {LONGEST:,} characters together", where="tools")
        for tool in tools:
            self._require_held(tool)
        return grammar

    def reader(self) -> ToolReader:
        """Follows one answer."""
        return ToolReader(self.form)

    def _rules(self, tools: Sequence[Tool], text: bool, between: Sequence[str] | None) -> list[str]:
        """The grammar, line by line.

        Args:
            text: whether there may be text.
            between: what stands between two calls; None for one call only.
        """
        form = self.form
        rules = self._text_rules() if text else [f"start: calls{self._stop()}"]
        lead = form.lead[len(form.trigger) :] if text else form.lead
        more = " (next end)*" if between is not None else ""
        rules.append(f"calls: first end{more} {self._written(form.close)}")
        rules.append(f"end: {self._written(form.end)}")
        for kind, before in (("first", lead), ("next", between)):
            if before is not None:
                calls = (self._written((*before, *tool.name, *form.middle)) for tool in tools)
                rules.append(f"{kind}: " + " | ".join(f"{call} arguments{n}" for n, call in enumerate(calls)))
        rules += [f"arguments{number}: %json {self._schema(tool)}" for number, tool in enumerate(tools)]
        return rules

    def _stop(self) -> str:
        """What may end an answer, besides the tokens that end every text."""
        return f" ({_tokens(self._other_stops)})?" if self._other_stops else ""

    def _text_rules(self, *, calls: bool = True) -> list[str]:
        """Text that holds no call, and how one begins after it, where there may be `calls`.

        Control tokens may stand in it as they may without tools. They are not shown; so what stands before one is not
        the beginning of a trigger that would be complete after it.
        """
        form, trigger = self.form, "".join(self.form.trigger)
        before = r"/\s*/" if form.anchored else "ANY"
        begun = " | ".join(json.dumps(trigger[:size]) for size in range(0 if form.anchored else 1, len(trigger)))
        last = "(TEXT | begun calls)?" if calls else "TEXT?"
        rules = [
            f"start: answer{self._stop()}",
            "ANY: /(?s:.*)/",
            f"CALL: {before} {json.dumps(trigger)} ANY",
            "TEXT: /(?s:.+)/ & ~CALL",
            f"UNDECIDED: {before} ({begun})",
            "DECIDED: TEXT & ~UNDECIDED",
        ]
        others = _tokens(self._others)
        if form.anchored:
            some, more = (f"({others})*", f"(({others})+ /(?s:.+)/)* ({others})*") if others else ("", "")
            rules.append(f"answer: {some} {last}" + (f" | {some} DECIDED {more}" if others else ""))
        else:
            some = f"(DECIDED? ({others}))*" if others else ""
            rules.append(f"answer: {some} {last}")
        if not calls:
            return rules
        if form.trigger[0] in form.control:
            return [*rules, f"begun: DECIDED? {self._written(form.trigger)}"]
        # Text and the beginning of a call are one lexeme: what is still text at every character cannot be cut.
        return [*rules, f"begun[lazy]: {before} {json.dumps(trigger)}"]

    def _written(self, segment: Sequence[str]) -> str:
        """A part of the form as a sequence of the grammar."""
        parts: list[str] = []
        letters = ""
        for atom in (*segment, ""):
            if len(atom) == 1 and atom not in (ID, NUMBER) and atom not in self.form.control:
                letters += atom
                continue
            parts += [json.dumps(letters)] if letters else []
            letters = ""
            if atom in self.form.control:
                parts += [f"<[{self._ids[atom]}]>", *(['" "?'] if self.form.spaced else [])]
            elif atom == NUMBER:
                parts.append("/[0-9]/")
            elif atom:
                before, size, after = atom.split(ID)[0], atom.count(ID), atom.split(ID)[-1]
                id = f"/[A-Za-z0-9]{{{size}}}/"
                # Models are seen to leave an id out where it is a field of its own.
                parts.append(f"({json.dumps(before)} {id} {json.dumps(after)})?" if before else id)
        return " ".join(parts) or '""'

    def _schema(self, tool: Tool) -> str:
        """The schema of a tool's arguments, spaced as the template spaces JSON."""
        style = self.form.style
        spacing = {
            "whitespace_flexible": style.indented,
            "item_separator": style.item_separator,
            "key_separator": style.key_separator,
        }
        if style.indented:
            spacing["whitespace_pattern"] = INDENTATION
        return json.dumps(tool.parameters | {"type": "object", "x-guidance": spacing})

    def _require_held(self, tool: Tool) -> None:
        """Refuse a tool whose arguments cannot be held to its schema."""
        grammar = LLMatcher.grammar_from_lark(f"start: %json {self._schema(tool)}")
        _, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
        if messages:
            reason = next((line.strip() for line in messages[0].splitlines() if line.strip()), "it is not understood")
            raise InputError(f"its parameters cannot be held to: {reason.rstrip('.')}", where=f"tool {tool.name}")


def _tokens(ids: Sequence[int]) -> str:
    """Any one of some tokens, as a grammar says it."""
    return f"<[{','.join(map(str, ids))}]>" if ids else ""
