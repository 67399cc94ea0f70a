"""The engine: writes many texts at once, a token of each at every step. Everything that generates goes through it.

    engine = Engine(TorchStep(model, blocks=100), tokenizer, context_length=1024)
    request = engine.submit(ids, [Sampling()], end_ids)
    for piece in engine.pieces(request): print(piece.text, end="")
    searched = engine.search(ids, BeamSearch(beams=4), end_ids)

Texts join and leave between steps. A step reads the next token of every text that is being written, and a piece of the
prompts that wait, at most so much that nobody is held up. Beginnings that texts have in common are read once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.inference.beams import BeamSearch, Hypothesis
from rhapsode.inference.block_pool import BlockPool, Lease, blocks_of
from rhapsode.inference.matching import Constraints, Matcher
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.search import Search, check_search
from rhapsode.inference.speculation import Speculation
from rhapsode.inference.step import Reading, Step
from rhapsode.inference.text import Likelihood, Piece, Text
from rhapsode.model.block_cache import BLOCK
from rhapsode.tokenizer.tokenizer import Tokenizer

PROMPT_TOKENS = 256
"""Of prompts, read in one step: enough to use a processor well, and few enough that nobody waits long for it."""


FIRST_GUESSES, MOST_GUESSES = 4, 16
"""Tokens guessed for a text at once: twice as many after all were right, half after none was."""


MOST_ENDS = 4
"""Sets of tokens that end texts, for which what holds texts to a form is kept ready."""


class QueueFullError(RhapsodeError):
    """More texts wait than may."""


class TooLateError(RhapsodeError):
    """The deadline of a request has come before its end."""


@dataclass(frozen=True)
class Look:
    """What is told of each token, besides the token."""

    likeliest: int | None = None
    """How likely it was, and so many of the likeliest; None for neither."""
    prompt: bool = False
    """The same of the prompt's tokens, in `Request.prompt`; `likeliest` must be given."""
    logits: bool = False
    """The logits it was drawn from."""


class Request:
    """Texts that were asked for together, from one prompt; or a search, which counts as one text.

    Attributes:
        hypotheses: what a search has found, the best first; empty until it ends.
        look: what is told of each token besides the token.
        prompt: how likely each token of the prompt was, where that was asked for; None for the first one.
        guessed: tokens that speculation proposed, and `accepted`, how many of them were drawn.
        error: why it could not be finished; None when it was or still can be.
        cached: tokens of the prompt that had been read before, for another text.
    """

    def __init__(self, texts: Sequence[Text | Search], deadline: float | None, look: Look) -> None:
        self.texts, self.deadline, self.look = texts, deadline, look
        self.hypotheses: list[Hypothesis] = []
        self.prompt: list[Likelihood | None] = [None] if look.prompt else []
        self.guessed = self.accepted = 0
        self.waiting: deque[Piece] = deque()
        self.error: RhapsodeError | None = None
        self.cached = 0

    @property
    def finished(self) -> bool:
        """Whether no piece will come any more."""
        return self.error is not None or all(text.finish_reason is not None for text in self.texts)


class _Running:
    """A text that has its blocks, or one beam of a search, and how much of it was read."""

    def __init__(self, request: Request, text: Text | Search, lease: Lease, ids: list[int], read: int) -> None:
        self.request, self.text, self.lease, self.ids, self.read = request, text, lease, ids, read
        self.guesses: list[int] = []
        self.most_guesses = FIRST_GUESSES

    @property
    def unread(self) -> int:
        return len(self.ids) - self.read

    @property
    def looks_at_prompt(self) -> bool:
        """Whether it reads the prompt so that all of its tokens can be judged: one text does it for its request."""
        return self.request.look.prompt and self.text.row == 0 and self.read < self.text.prompt_length


class Engine:
    """Writes texts. Several threads may ask at once; whoever waits for pieces computes the next step for all.

    Args:
        step: computes the logits.
        tokenizer: None where nothing is asked for but searches for ids.
        context_length: tokens that the model can read.
        speculation: makes guesses for texts; None for none.
        longest_queue: texts that may wait; None for any number.

    Attributes:
        guessed: tokens that speculation proposed for all texts so far, and `accepted`, how many of them were drawn.
    """

    def __init__(
        self,
        step: Step,
        tokenizer: Tokenizer | None,
        context_length: int,
        *,
        speculation: Speculation | None = None,
        longest_queue: int | None = None,
    ) -> None:
        self._step, self._tokenizer, self.context_length = step, tokenizer, context_length
        self.speculation, self.longest_queue = speculation, longest_queue
        self.pool = BlockPool(step.blocks)
        self.guessed = self.accepted = 0
        self._constraints: dict[frozenset[int], Constraints] = {}
        self._queue: deque[tuple[Request, Text | Search]] = deque()
        self._running: list[_Running] = []
        self._lock = threading.RLock()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._queue and not self._running

    @property
    def waiting(self) -> int:
        """Texts that wait for their turn."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Texts that are being written; each beam is one."""
        return len(self._running)

    def submit(
        self,
        prompt: Sequence[int],
        samplings: Sequence[Sampling],
        end_ids: Collection[int],
        *,
        deadline: float | None = None,
        look: Look = Look(),  # frozen
    ) -> Request:
        """Ask for texts from one prompt, one for each of `samplings`.

        Args:
            prompt: ids, at least one.
            end_ids: ids with which the model ends a text.
            deadline: when it is too late, by `time.monotonic`.
            look: what is told of each token.

        Raises:
            InputError: the prompt is empty or too long, the cache is too small for the text, a token is unknown, or
                the text cannot be held to what it shall be.
            QueueFullError: too many wait already.
        """
        with self._lock:
            texts = [self._text(row, prompt, sampling, end_ids) for row, sampling in enumerate(samplings)]
            for text in texts:
                if blocks_of(text.longest - 1) > self.pool.count:
                    raise InputError(
                        f"a text of {text.longest} tokens is longer than the cache of {self.pool.count * BLOCK}",
                        todo="Ask for fewer new tokens.",
                    )
            return self._submitted(Request(texts, deadline, look))

    def search(
        self,
        prompt: Sequence[int],
        search: BeamSearch,
        end_ids: Collection[int],
        *,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        count: int | None = None,
        vocabulary_size: int | None = None,
        deadline: float | None = None,
    ) -> Request:
        """Ask for the most likely texts from a prompt: `hypotheses`, and as pieces, each text in one, when it ends.

        The beams are read in the same steps as everybody's texts. What is found does not depend on the texts beside
        it, beyond the rounding of fp32 sums.

        Args:
            prompt: ids, at least one.
            end_ids: ids with which the model ends a text.
            sampling: its bans, its stops, and what it holds texts to; nothing in it may say how tokens are drawn.
            count: hypotheses to give, at most as many as there are beams; None for all.
            vocabulary_size: only tokens below this are written; None for the tokenizer's.
            deadline: when it is too late, by `time.monotonic`.

        Raises:
            InputError: the prompt is empty or too long, the cache is too small for the beams, a token is unknown, the
                text cannot be held to what it shall be, a setting that a search does not follow, or more texts asked
                for than there are beams.
            QueueFullError: too many wait already.
        """
        with self._lock:
            check_search(sampling)
            guide = None
            if self._tokenizer is None:
                assert sampling == Sampling(), "what texts must be is said with a tokenizer"
            else:
                most = search.max_new_tokens or self.context_length
                guide = self._text(0, prompt, replace(sampling, max_new_tokens=most), end_ids)
                vocabulary_size = vocabulary_size or self._tokenizer.vocabulary_size
            assert vocabulary_size is not None, "without a tokenizer, the size of the vocabulary is needed"
            searched = Search(prompt, search, end_ids, self.context_length, vocabulary_size, guide, count)
            if searched.blocks > self.pool.count:
                raise InputError(
                    f"{search.beams} beams of {searched.longest} tokens are more than the cache of "
                    f"{self.pool.count * BLOCK}",
                    where="beams",
                    todo="Ask for fewer, or for fewer new tokens.",
                )
            return self._submitted(Request([searched], deadline, Look()))

    def _text(self, row: int, prompt: Sequence[int], sampling: Sampling, end_ids: Collection[int]) -> Text:
        """A text that has not begun."""
        assert self._tokenizer is not None, "texts are written with a tokenizer"
        matcher = self._matcher(self._tokenizer, sampling, end_ids)
        return Text(row, prompt, sampling, self._tokenizer, end_ids, self.context_length, matcher)

    def _matcher(self, tokenizer: Tokenizer, sampling: Sampling, end_ids: Collection[int]) -> Matcher | None:
        """What follows a text that must be of some form."""
        constraint = sampling.constraint
        if constraint is None:
            return None
        stops = (tokenizer.token_to_id(name) for name in sampling.stop_tokens)
        ends = frozenset((*end_ids, *(id for id in stops if id is not None)))
        if ends not in self._constraints:
            self._constraints[ends] = Constraints(tokenizer, sorted(ends))
            if len(self._constraints) > MOST_ENDS:
                del self._constraints[next(iter(self._constraints))]
        return self._constraints[ends].matcher(constraint)

    def _submitted(self, request: Request) -> Request:
        """Let a request wait for its turn."""
        if self.longest_queue is not None and len(self._queue) + len(request.texts) > self.longest_queue:
            raise QueueFullError(f"{len(self._queue)} texts are waiting already", todo="Try again later.")
        self._queue.extend((request, text) for text in request.texts)
        return request

    def cancel(self, request: Request) -> None:
        """Stop writing what a request asked for; its blocks are free at once."""
        with self._lock:
            self._queue = deque((other, text) for other, text in self._queue if other is not request)
            for running in [running for running in self._running if running.request is request]:
                self._end(running)

    def pieces(self, request: Request) -> Iterator[Piece]:
        """The pieces of a request as they are written, computing steps while there is none. Who stops, cancels.

        Raises:
            RhapsodeError: the request cannot be finished.
        """
        try:
            while True:
                with self._lock:  # not in the middle of a step: its last piece may not be there yet
                    finished = request.finished
                while request.waiting:
                    yield request.waiting.popleft()
                if request.error is not None:
                    raise request.error
                if finished:
                    return
                self.step()
        finally:
            self.cancel(request)

    def finish(self, request: Request) -> None:
        """Compute steps until a request is finished; errors as `pieces`."""
        for _ in self.pieces(request):
            pass

    def step(self) -> None:
        """Compute one step: the pieces written are in `waiting` of their requests."""
        with self._lock:
            self._give_up_what_is_late()
            self._admit()
            readings, chosen = self._plan()
            if not readings:
                return
            searched: dict[Search, tuple[list[_Running], list[np.ndarray]]] = {}
            for running, reading, rows in zip(chosen, readings, self._step(readings), strict=True):
                if running.request.error is not None:  # a text beside it in the same request has failed just now
                    continue
                logits = self._judge_prompt(running, reading, rows) if running.looks_at_prompt else rows
                running.read += len(reading.ids) - len(running.guesses)
                if isinstance(running.text, Text) and len(logits):
                    self._write(running, running.text, logits)
                    continue
                self.pool.keep(running.lease, running.ids[: running.read])
                if isinstance(running.text, Search) and len(logits):
                    beams, rows_of_all = searched.setdefault(running.text, ([], []))
                    beams.append(running)
                    rows_of_all.append(logits[0])
            for search, (beams, rows_of_all) in searched.items():
                self._go_on(search, beams, np.stack(rows_of_all))

    def _plan(self) -> tuple[list[Reading], list[_Running]]:
        """What is read in this step, and for whom: first those that write, then prompts in the order they came."""
        left = max(PROMPT_TOKENS - len(self._running), PROMPT_TOKENS // 2)
        readings, chosen = [], []
        for running in sorted(self._running, key=lambda running: running.unread > 1):
            new = running.unread if running.unread == 1 else min(running.unread, left)
            if new == 0:
                continue
            left -= new if running.unread > 1 else 0
            last = new == running.unread
            running.guesses = self._guesses(running) if last else []
            ids = running.ids[running.read : running.read + new] + running.guesses
            wanted = 1 + len(running.guesses) if last else 0
            if running.looks_at_prompt:
                wanted = len(ids)
            readings.append(Reading(ids, running.lease.blocks, running.read, wanted))
            chosen.append(running)
        return readings, chosen

    def _guesses(self, running: _Running) -> list[int]:
        """Tokens that may come next, as far as there is room to read them."""
        text = running.text
        most = min(running.most_guesses, text.longest - 1 - len(running.ids))
        if self.speculation is None or most < 1 or isinstance(text, Search):
            return []
        return self.speculation.guess(text, most)

    def _judge_prompt(self, running: _Running, reading: Reading, logits: np.ndarray) -> np.ndarray:
        """Note how likely the prompt's tokens were; leaves the rows (rows, vocabulary) from which tokens are drawn."""
        text, request = running.text, running.request
        assert isinstance(text, Text) and request.look.likeliest is not None
        first = running.read + 1  # the token that the first row foretells
        for place in range(first, min(first + len(reading.ids), text.prompt_length)):
            likely = likelihood(logits[place - first], running.ids[place], request.look.likeliest, text.vocabulary_size)
            request.prompt.append(likely)
        return logits[max(0, text.prompt_length - first) :]

    def _write(self, running: _Running, text: Text, logits: np.ndarray) -> None:
        """Draw a text's next token, and one more for each guess that was right; logits (guesses + 1, vocabulary)."""
        request, guesses = running.request, running.guesses
        right = 0
        for row in logits:
            try:
                token = text.draw(row)
                piece = text.push(token)
            except RhapsodeError as error:
                request.error = error
                self.cancel(request)
                return
            if request.look.likeliest is not None:
                likely = likelihood(row, token, request.look.likeliest, text.vocabulary_size)
                piece = replace(piece, likelihood=likely)
            if request.look.logits:
                piece = replace(piece, logits=row[: text.vocabulary_size])
            request.waiting.append(piece)
            if text.finish_reason is not None or right == len(guesses) or token != guesses[right]:
                break
            right += 1
        running.read += right
        for counted in (request, self):
            counted.guessed += len(guesses)
            counted.accepted += right
        if guesses and right in (0, len(guesses)):
            running.most_guesses = max(1, running.most_guesses // 2) if right == 0 else min(2 * right, MOST_GUESSES)
        self.pool.keep(running.lease, text.ids[: running.read])
        if text.finish_reason is not None:
            self._end(running)

    def _go_on(self, search: Search, beams: list[_Running], logits: np.ndarray) -> None:
        """Let some beams of a search go on, with one token more or in several ways; logits (beams, vocabulary)."""
        request = beams[0].request
        try:
            going = search.go_on(logits)
        except RhapsodeError as error:
            request.error = error
            self.cancel(request)
            return
        for place, beam in enumerate(beams):  # those that do not go on give their blocks to those that fork
            if all(place != row for row, _ in going):
                self._end(beam)
        first: set[int] = set()
        sources, targets = list[int](), list[int]()
        for place, token in going:
            beam = beams[place]
            lease = beam.lease
            if place in first:
                lease = self.pool.fork(lease, beam.read)
                if beam.read % BLOCK:
                    sources.append(beam.lease.blocks[beam.read // BLOCK])
                    targets.append(lease.blocks[beam.read // BLOCK])
            else:
                first.add(place)
                self._running.remove(beam)
            self._running.append(_Running(request, search, lease, [*beam.ids, token], beam.read))
        if sources:
            self._step.copy(sources, targets)
        if not going:
            request.hypotheses = search.hypotheses
            request.waiting.extend(search.pieces())

    def _admit(self) -> None:
        """Give blocks to the texts that wait, in the order they came, while there are enough."""
        later: deque[tuple[Request, Text | Search]] = deque()
        while self._queue:
            request, text = self._queue[0]
            judged = request.look.prompt and text.row == 0  # it reads all of its prompt, whatever was read before
            if not judged and any(_begins_alike(text, running) for running in self._running):
                later.append(self._queue.popleft())  # what another text is about to read need not be read twice
                continue
            lease = self.pool.lease(text.ids, text.longest - 1, share=not judged, forks=text.forks)
            if lease is None:
                break
            self._queue.popleft()
            request.cached = max(request.cached, lease.shared)
            ids = text.ids if isinstance(text, Text) else list(text.ids)
            self._running.append(_Running(request, text, lease, ids, lease.shared))
        self._queue.extendleft(reversed(later))

    def _give_up_what_is_late(self) -> None:
        now = time.monotonic()
        everyone = [request for request, _ in self._queue] + [running.request for running in self._running]
        for request in everyone:
            if request.deadline is not None and now > request.deadline and request.error is None:
                request.error = TooLateError("the time for this request is over", todo="Ask for fewer tokens.")
                self.cancel(request)

    def _end(self, running: _Running) -> None:
        self._running.remove(running)
        self.pool.give_back(running.lease)
        if self.speculation is not None and isinstance(running.text, Text):
            self.speculation.forget(running.text)


def likelihood(logits: np.ndarray, token: int, count: int, tokens: int) -> Likelihood:
    """How likely a token is by all logits (vocabulary,) of a model, and the `count` likeliest.

    Args:
        tokens: of the tokenizer. A model may have more rows: they are never drawn, and yet take their share of what
            the model itself says, as everywhere else.
    """
    scores = logits.astype(np.float64)
    log_p = scores - scores.max()
    log_p = (log_p - np.log(np.exp(log_p).sum()))[:tokens]
    best = np.arange(len(log_p))
    if 0 < count < len(log_p):  # all that are as likely as the last of them, so that equal ones stand by their number
        best = np.flatnonzero(log_p >= np.partition(log_p, -count)[-count])
    best = best[np.argsort(-log_p[best], kind="stable")][:count]
    return Likelihood(float(log_p[token]), tuple((int(id), float(log_p[id])) for id in best))


def _begins_alike(text: Text | Search, running: _Running) -> bool:
    """Whether the other text is still reading a first block that this one needs too, and has not got."""
    reading = running.read < len(running.ids) - 1 and running.lease.kept < (len(text.ids) - 1) // BLOCK
    end = (running.lease.kept + 1) * BLOCK
    return reading and end <= running.text.prompt_length and text.ids[:end] == running.ids[:end]
