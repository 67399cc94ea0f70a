"""How a model writes its calls of tools, learned from its chat template by what that template makes of known calls.

Nothing is known here about any model. A conversation with calls of unusual names is rendered; where the names and the
arguments stand in it, the rest is the form:

    lead name middle {arguments} end [between name middle {arguments} end]... close

In `<tool_call>{"name": "x", "arguments": {}}</tool_call>` the lead is `<tool_call>{"name": "`, the middle
`", "arguments": ` and the end `}</tool_call>`. Lists of calls, names outside of the JSON and control tokens are all of
this form. Where the template writes the id of a call or numbers the calls, the form holds `ID` or `NUMBER`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.inference.call import NAME, Call, json_spans
from rhapsode.inference.chat import PROBE, PROBE_ARGUMENTS, CallShape, ChatTemplate

ID = "\uf8ff"
"""Stands for one letter or digit of an id."""
NUMBER = "\uf8fe"
"""Stands for the number of a call in its turn, a digit."""

SMALLEST_TRIGGER = 2  # characters: one alone stands in every other text

Segment = tuple[str, ...]
"""A part of the form: characters, names of control tokens, and ids with what belongs to them, each as one."""


@dataclass(frozen=True)
class JsonStyle:
    """How the template spaces JSON."""

    item_separator: str = ", "
    key_separator: str = ": "
    indented: bool = False
    """Whether it stands on several lines."""


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls."""

    lead: Segment
    """Before the name of the first call."""
    middle: Segment
    """Between a name and its arguments."""
    end: Segment
    """After the arguments of each call."""
    between: Segment | None
    """After the end of one call, before the name of the next; None where a turn has only one call."""
    close: Segment
    """After the end of the last call."""
    trigger: Segment
    """With this, at the beginning of the lead, a call has begun, whatever comes then."""
    anchored: bool
    """Whether a call can only begin where the answer begins, because its form has no mark of its own."""
    style: JsonStyle
    stops: tuple[str, ...]
    """Control tokens with which the template ends the assistant's turn, with calls or without."""
    control: frozenset[str]
    """All names of control tokens."""
    spaced: bool
    """Whether a space may stand after a control token: some tokenizers put one before every text."""

    @classmethod
    def of(cls, template: ChatTemplate) -> CallForm:
        """The form of a template.

        Raises:
            InputError: it writes no calls, or in a form that is not of this kind.
        """
        shape = template.call_shape
        if shape is None:
            raise template.no_tools("tool calls")
        form = _Probes(template, shape).form()
        if form is None:
            raise template.no_tools("tool calls in a form that can be read back")
        return form

    @property
    def shown(self) -> tuple[str, ...]:
        """The control tokens that are part of the form."""
        parts = (self.lead, self.middle, self.end, self.between or (), self.close)
        return tuple(dict.fromkeys(atom for part in parts for atom in part if atom in self.control))


class _Probes:
    """Renders conversations with known calls, and finds the form in them."""

    def __init__(self, template: ChatTemplate, shape: CallShape) -> None:
        self.template, self.shape = template, shape
        self.control = frozenset(template.model.tokenizer.special_tokens)
        self.calls = [
            Call(f"qv_{word}", PROBE_ARGUMENTS.replace("qv_value", f"qv_value{word}"), f"qvprobe0{number}")
            for number, word in enumerate(("alpha", "beta", "gamma"))
        ]
        special = "".join(f"{re.escape(name)}|" for name in sorted(self.control, key=len, reverse=True))
        self._atoms = re.compile(rf'{special}, "[^"]+": "{ID}+"|{ID}+|.', re.DOTALL)

    def form(self) -> CallForm | None:
        """The form; None where there is none."""
        after_text = self._after_text()
        found = [self._written(self.calls[:count]) for count in (1, 2, 3)]
        one, two, three = [text and self._split(text, count) for count, text in enumerate(found, 1)]
        if not one:
            return None
        (lead, middle, tail), stop = one, self._stop(one[-1], after_text)
        tail = tail[: len(tail) - len(stop)]
        between: Segment | None = None
        end: Segment = _trimmed(tail)
        close: Segment = ()
        if two and two[:2] == (lead, middle) and two[3] == middle:
            stop = self._stop(two[-1], after_text)
            last, gap = _trimmed(two[-1][: len(two[-1]) - len(stop)]), two[2]
            if last[: len(end)] == end:  # a template may close the calls only where there are several
                size = _common(last, gap)
                numbered = _numbered(gap, three[4]) if three else gap
                end, between, close = gap[:size], numbered[size:], last[size:]
        lead = _left_trimmed(lead)
        trigger, anchored = self._trigger(lead, str(found[0]))
        begins_like_name = bool(middle) and NAME.match(middle[0]) is not None
        if not trigger or begins_like_name or (between is not None and not between):
            return None
        stops = [next((atom for atom in part if atom in self.control), None) for part in (stop, after_text)]
        named = tuple(dict.fromkeys(name for name in stops if name is not None))
        style = _style(str(found[0]), self.calls[0].value())
        return CallForm(
            lead, middle, end, between, close, trigger, anchored, style, named, self.control, self._spaced()
        )

    def _spaced(self) -> bool:
        tokenizer = self.template.model.tokenizer
        for id in list(tokenizer.special_tokens.values())[:1]:
            alone, before_text = ([id], [id, *tokenizer.encode("[")])
            one, other = (tokenizer.decode(ids, skip_special=False) for ids in (alone, before_text))
            return other.removeprefix(one).startswith(" ")
        return False

    def _render(self, message: dict[str, Any] | None) -> str | None:
        turns = [{"role": "user", "content": "qv"}, *([message] if message else [])]
        try:
            return self.template.rendered(turns, [PROBE.as_json()], generation=message is None)
        except InputError:
            return None

    def _written(self, calls: Sequence[Call]) -> str | None:
        """What the template writes of the assistant's turn with these calls, and after it."""
        text, plain = self._render(self.shape.message(calls)), self._render({"role": "assistant", "content": "qvtext"})
        if text is None:
            return None
        # The turn begins where a text would stand; else after what the template writes for the model to go on from.
        start = plain.rfind("qvtext") if plain else -1
        if plain and start >= 0 and text[:start] == plain[:start]:
            return text[start:]
        opening = self._render(None)
        return text[len(opening) :] if opening is not None and text.startswith(opening) else None

    def _after_text(self) -> Segment:
        """What the template writes after a text of the assistant."""
        plain = self._render({"role": "assistant", "content": "qvtext"}) or ""
        return self._segment(plain[plain.rfind("qvtext") + len("qvtext") :]) if "qvtext" in plain else ()

    def _segment(self, text: str) -> Segment:
        for call in self.calls:
            text = text.replace(call.id, ID * len(call.id))
        return tuple(self._atoms.findall(text))

    def _split(self, text: str, count: int) -> tuple[Segment, ...] | None:
        """What stands before, between and after the names and arguments of so many calls."""
        parts, at = [], 0
        for call in self.calls[:count]:
            spans = json_spans(text, call.value())
            if text.count(call.name) != 1 or len(spans) != 1:
                return None
            name, (start, end) = text.find(call.name), spans[0]
            if not at <= name < start:
                return None
            parts += [text[at:name], text[name + len(call.name) : start]]
            at = end
        return tuple(map(self._segment, (*parts, text[at:])))

    def _stop(self, tail: Segment, after_text: Segment) -> Segment:
        """The end of `tail` that ends the turn, and is no part of the calls."""
        size = _common(tail[::-1], after_text[::-1])
        common = tail[len(tail) - size :]
        if size and (size == len(after_text) or common[0] in self.control):
            return common
        kept = _trimmed(tail)
        return tail[len(kept) - 1 :] if kept and kept[-1] in self.control else ()

    def _trigger(self, lead: Segment, text: str) -> tuple[Segment, bool]:
        """The part of the lead that tells a call from text, and whether it does so only where an answer begins."""
        if lead and lead[0] in self.control:
            return lead[:1], False
        written = "".join(lead)
        around = self._json_around(text.lstrip())
        before = written if around is None else written[:around].rstrip()
        if not before:
            key = re.match(r'[\[{][\s\[{]*"[^"]*"', written)
            return tuple(key[0]) if key else (), True
        marked = self._segment(before)
        size = next((number for number, atom in enumerate(marked) if len(atom) > 1), len(marked))
        return marked[:size] if size >= SMALLEST_TRIGGER else (), False

    def _json_around(self, text: str) -> int | None:
        """Where the JSON begins that the first call's name stands in; None if it stands in none."""
        decoder, name = json.JSONDecoder(), text.find(self.calls[0].name)
        for match in re.finditer(r"[\[{]", text[:name]):
            try:
                _, end = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                continue
            if end > name:
                return match.start()
        return None


def _style(text: str, value: dict[str, Any]) -> JsonStyle:
    """The spacing of the arguments in a text."""
    ((start, end),) = json_spans(text, value)
    for separators in ((", ", ": "), (",", ":"), (",", ": "), (", ", ":")):
        if json.dumps(value, separators=separators) == text[start:end]:
            return JsonStyle(*separators)
    return JsonStyle(",", ":", indented=True)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements they have in common from the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _numbered(gap: Segment, next_gap: Segment) -> Segment:
    """What stands between two calls, with `NUMBER` where the next two have the next number."""
    if len(gap) != len(next_gap):
        return gap
    digits = {str(number): str(number + 1) for number in range(9)}
    return tuple(NUMBER if digits.get(a) == b else a for a, b in zip(gap, next_gap, strict=True))


def _trimmed(segment: Segment) -> Segment:
    """Without space at the end."""
    while segment and segment[-1].isspace():
        segment = segment[:-1]
    return segment


def _left_trimmed(segment: Segment) -> Segment:
    """Without space at the beginning."""
    return _trimmed(segment[::-1])[::-1]
