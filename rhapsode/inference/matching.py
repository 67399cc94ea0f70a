"""What a text must be: JSON of a schema, a match of a regular expression, a sentence of a grammar, one of some strings.

rhapsode generate runs/mytext "Yes or no? " --choice yes --choice no

llguidance says before each token which ones can still lead to such a text. What it cannot hold to is refused before
anything is written; no text is ever free where it should not be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from rhapsode.base.errors import InputError, shown
from rhapsode.inference.constraint import Constraint
from rhapsode.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

LONGEST = 100_000  # characters of a schema, expression, grammar, or of all choices
# Some hundred milliseconds at most for making one, some ten for each token; tens of megabytes.
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000, step_lexer_fuel=400_000, max_lexer_states=20_000, max_grammar_size=20_000
)

MOST_KEPT = 8  # of what was made lately: texts that are asked for together are of one form


def grammar_of(constraint: Constraint) -> str:
    """A constraint in llguidance's form.

    Raises:
        InputError: it is too long, or the schema is no JSON.
    """
    if len(constraint.source) > LONGEST:
        raise InputError(f"is longer than {LONGEST:,} characters", where=constraint.kind)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.source)
    if constraint.kind == "grammar":
        return LLMatcher.grammar_from_lark(constraint.source)
    try:
        value = json.loads(constraint.source)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=constraint.kind) from None
    if constraint.kind == "choice":
        if not value or not all(isinstance(each, str) and each for each in value):
            raise InputError("needs at least one string, and none that is empty", where=constraint.kind)
        return LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in value)
        )
    if not isinstance(value, dict | bool):
        raise InputError(f"{shown(value)} is not a schema, which is an object", where=constraint.kind)
    # As json.dumps has it: where any space may stand, small models write nothing but spaces.
    spaces: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    try:
        return LLMatcher.grammar_from_json_schema(constraint.source, overrides=spaces)
    except ValueError as error:  # Python's reader knows deeper nesting and larger numbers
        raise InputError(f"cannot be held to: {error}", where=constraint.kind) from None


class Matcher:
    """Follows one text.

    Attributes:
        complete: nothing can follow any more.
    """

    def __init__(self, matcher: LLMatcher, constraint: Constraint) -> None:
        self._matcher, self._constraint = matcher, constraint

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self, vocabulary: int) -> np.ndarray:
        """Which tokens may come next, (vocabulary,) of bool.

        Raises:
            InputError: it has become too complicated to follow.
        """
        bits = self._matcher.compute_bitmask()
        self._check()
        mask: np.ndarray = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[:vocabulary].view(bool)
        return mask

    def push(self, token: int) -> None:
        """The text goes on with a token, one that is allowed or ends it; errors as `allowed`."""
        self._matcher.consume_token(token)
        self._check()

    def fork(self) -> Matcher:
        """Follows the same text so far, which then goes on otherwise."""
        return Matcher(self._matcher.deep_copy(), self._constraint)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().splitlines()[0]
            raise InputError(f"the text cannot be held to it any more: {reason}", where=self._constraint.kind)


class Constraints:
    """Makes matchers for texts in one tokenizer's tokens.

    Args:
        end_ids: tokens that end a text; they are allowed where it may end.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        tokens = _Tokens(tokenizer, end_ids)
        self._tokenizer = LLTokenizer(TokenizerWrapper(tokens), eos_token=list(end_ids) or [tokens.eos_token_id])
        self._made: dict[Constraint, LLMatcher] = {}

    def matcher(self, constraint: Constraint) -> Matcher:
        """Follow a new text.

        Raises:
            InputError: it is not understood, asks for what is not supported, or is too complicated.
        """
        if constraint not in self._made:
            self._made[constraint] = self._make(constraint)
            if len(self._made) > MOST_KEPT:
                del self._made[next(iter(self._made))]
        return Matcher(self._made[constraint].deep_copy(), constraint)

    def _make(self, constraint: Constraint) -> LLMatcher:
        grammar = grammar_of(constraint)
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer, limits=LIMITS)
        matcher = None if messages else LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        if matcher is None or matcher.is_error():
            told = messages[0] if messages else matcher.get_error() if matcher else ""
            reason = next((line.strip() for line in told.splitlines() if line.strip()), "it is not understood")
            raise InputError(f"cannot be held to: {reason.rstrip('.')}", where=constraint.kind)
        assert not failed
        return matcher


class _Tokens:
    """A tokenizer as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Where no token ends a text, one stands for that which is beyond the vocabulary, and so never written.
        self.eos_token_id = end_ids[0] if end_ids else tokenizer.vocabulary_size
        self.bos_token_id = None
        self.tokens = [tokenizer.id_to_bytes(id) for id in range(tokenizer.vocabulary_size)]
        self.tokens += [] if end_ids else [b""]
        self.special_token_ids = sorted({*tokenizer.special_tokens.values(), *end_ids, self.eos_token_id})

        # Some tokenizers put a space before every text; what is asked for here goes on from another.
        self._before = [] if self._bytes("x") == b"x" else tokenizer.encode("\n")

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        size = len(self._before)
        if size:
            ids = self._tokenizer.encode("\n" + text)
            if ids[:size] == self._before:
                return ids[size:]
        return self._tokenizer.encode(text)

    def _bytes(self, text: str) -> bytes:
        return b"".join(map(self._tokenizer.id_to_bytes, self._tokenizer.encode(text)))
