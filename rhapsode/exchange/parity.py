"""Whether a model that went through a door computes what it computed before it.

    largest difference of logits   mean KL divergence   agreeing greedy tokens

The same few prompts, made of the model's own tokens, go through the model and through each peer: the model read again
from what was written, and the libraries that will read it elsewhere, where they are installed. They are never needed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.base.progress import Progress
from rhapsode.base.random import generator
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.folder import DOES
from rhapsode.model.model import Model
from rhapsode.tokenizer.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, twice: 2 x 34,567 = 69,134 steps (more or less)."
PROMPTS = 3  # the text, and rows of tokens at random
LONGEST_PROMPT = 32  # tokens
GREEDY = 50  # tokens
MASK_EVERY = 5  # tokens of an encoder's prompt

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tolerance:
    """How far a peer may be off.

    Args:
        divergence: nats, the mean KL divergence of its next tokens from ours.
        largest: of any logit, for every 1 that logits reach; None where numbers were rounded on purpose.
    """

    divergence: float
    largest: float | None = None


SAME = Tolerance(1e-5, 1e-4)
"""The same numbers, added up in another order."""

TOLERANCES = {
    "F32": SAME,
    "BF16": Tolerance(1e-2),
    "F16": Tolerance(1e-3),
    "Q8_0": Tolerance(1e-2),
    "Q5_1": Tolerance(0.1),
    "Q5_0": Tolerance(0.1),
    "Q4_1": Tolerance(0.5),
    "Q4_0": Tolerance(0.5),
}
"""By how the numbers were written."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Args:
        ids: the text: to be continued, to be filled, or to be turned into another.
        places: of an encoder's text, the masked ones, whose logits are compared.
        target: of an encoder-decoder, the text written so far.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...] = ()
    target: tuple[int, ...] = ()


class Peer(Protocol):
    """Something that computes what the model computes."""

    def logits(self, prompt: Prompt) -> Logits:
        """(places, vocabulary): after each token of a text, or at its masked places; hidden states without a head."""

    def greedy(self, prompt: Prompt, count: int) -> list[int]:
        """The likeliest token, and so on."""


@dataclass(frozen=True)
class Row:
    """How a peer compares.

    Args:
        peer: its name.
        largest: difference of a logit; None if the peer could not compute.
        divergence: nats; None for hidden states.
        agreeing: greedy tokens until the first other one; None where no text is written.
        of: so many.
        fault: what is wrong, empty when nothing is.
    """

    peer: str
    largest: float | None = None
    divergence: float | None = None
    agreeing: int | None = None
    of: int = 0
    fault: str = ""


@dataclass(frozen=True)
class Parity:
    """The table.

    Args:
        missing: peers that are not installed.
    """

    rows: tuple[Row, ...]
    tolerance: Tolerance
    missing: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """What is wrong, a sentence each."""
        return [f"{row.peer}: {row.fault}" for row in self.rows if row.fault]


def check(
    model: Model,
    tokenizer: Tokenizer,
    peers: Sequence[tuple[str, Callable[[], Peer], Tolerance]],
    *,
    context: int,
    missing: Sequence[str] = (),
) -> Parity:
    """Compare a model with its peers, one after another.

    Args:
        peers: name, what makes it, and how far it may be off.
        context: tokens that all of them can read.
    """
    ours = Ours(model)
    prompts = list(_prompts(model, tokenizer, context))
    count = max(0, min(GREEDY, context - max(len(prompt.target or prompt.ids) for prompt in prompts)))
    rows = []
    with Progress("checking", 1 + len(peers), "models") as progress:
        greedy: list[int] = []
        asked = list(prompts)
        if not isinstance(model, Encoder) and count:
            greedy = ours.greedy(prompts[0], count)
            asked[0] = _with(prompts[0], greedy, model)  # the text that it writes is part of the comparison
        expected = [(prompt, ours.logits(prompt)) for prompt in asked]
        progress.advance()
        for name, make, tolerance in peers:
            rows.append(_row(name, make, tolerance, expected, prompts[0], greedy))
            gc.collect()  # of large models only one shall be there at a time
            progress.advance()
    return Parity(tuple(rows), peers[0][2], tuple(missing))


def _row(
    name: str,
    make: Callable[[], Peer],
    tolerance: Tolerance,
    expected: Sequence[tuple[Prompt, Logits]],
    prompt: Prompt,
    greedy: list[int],
) -> Row:
    try:
        peer = make()
        largest = highest = 0.0
        divergences: list[float] = []
        for asked, ours in expected:
            theirs = peer.logits(asked)
            if theirs.shape != ours.shape:
                return Row(name, fault=f"gives {theirs.shape} numbers, not {ours.shape}")
            if not np.isfinite(theirs).all():
                return Row(name, fault="gives numbers that are not finite")
            largest = max(largest, float(np.abs(theirs - ours).max()))
            highest = max(highest, float(np.abs(ours).max()))
            divergences.append(divergence(ours, theirs))
        text = peer.greedy(prompt, len(greedy)) if greedy else []
    except Exception as error:  # of a library, whatever it is
        lines = str(error).splitlines() or [""]
        return Row(name, fault=f"does not compute it ({type(error).__name__}: {lines[0][:200]})")
    agreeing = next((n for n, (one, other) in enumerate(zip(greedy, text, strict=False)) if one != other), len(text))
    row = Row(name, largest, float(np.mean(divergences)), agreeing if greedy else None, len(greedy))
    return replace(row, fault=_fault(row, tolerance, highest, expected[0], prompt, text))


def _fault(
    row: Row, tolerance: Tolerance, highest: float, first: tuple[Prompt, Logits], prompt: Prompt, text: list[int]
) -> str:
    assert row.largest is not None and row.divergence is not None
    if row.divergence > tolerance.divergence:
        return f"diverges by {row.divergence:.2g} nats; {tolerance.divergence:g} are allowed"
    if tolerance.largest is None:
        return ""
    allowed = tolerance.largest * max(1.0, highest)
    if row.largest > allowed:
        return f"logits differ by {row.largest:.2g}; {allowed:.2g} are allowed"
    if row.agreeing is not None and row.agreeing < row.of:
        start = len(prompt.target or prompt.ids) - 1
        scores = first[1][start + row.agreeing]
        if scores.max() - scores[text[row.agreeing]] > 2 * allowed:  # else two were as good as equal
            return f"writes another text from token {row.agreeing + 1} on"
    return ""


def divergence(ours: Logits, theirs: Logits) -> float:
    """Mean KL divergence in nats of softmax(theirs) from softmax(ours), both (places, vocabulary)."""
    logs = []
    for scores in (ours, theirs):
        shifted = scores - scores.max(axis=-1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=-1).mean())


def _prompts(model: Model, tokenizer: Tokenizer, context: int) -> Iterator[Prompt]:
    """A text, and tokens at random: always the same for a tokenizer."""
    front, back = tokenizer.frame
    special = set(tokenizer.special_tokens.values())
    known = [id for id in range(tokenizer.vocabulary_size) if id not in special] or [0]
    length = max(1, min(LONGEST_PROMPT, context // 2))
    target = (model.config.start_id or 0,) if isinstance(model, EncoderDecoder) else ()
    for number in range(PROMPTS):
        ids = generator(0, "parity", number).choice(known, length).tolist()
        if number == 0:
            with suppress(InputError):  # it may have no tokens for some letters
                ids = tokenizer.encode(TEXT)[:length] or ids
        if isinstance(model, Decoder):
            yield Prompt(tuple(([*front, *ids])[:length]))
            continue
        framed = [*front, *ids[: max(1, length - len(front) - len(back))], *back][:length]
        places: tuple[int, ...] = ()
        if isinstance(model, Encoder):
            places = tuple(range(len(framed)))
            if tokenizer.mask_id is not None and len(framed) > 1:
                places = tuple(range(1, len(framed), MASK_EVERY))
                framed = [tokenizer.mask_id if place in places else id for place, id in enumerate(framed)]
        yield Prompt(tuple(framed), places, target)


def _with(prompt: Prompt, written: list[int], model: Model) -> Prompt:
    if isinstance(model, EncoderDecoder):
        return replace(prompt, target=(*prompt.target, *written))
    return replace(prompt, ids=(*prompt.ids, *written))


class Ours:
    """A model of ours as a peer."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> Logits:
        model, ids = self.model, self._row(prompt.ids)
        if isinstance(model, EncoderDecoder):
            return _numbers(model(self._row(prompt.target), model.encode(ids))[0])
        if isinstance(model, Encoder):
            found = model(ids) if model.config.has_head else model.hidden(ids)
            return _numbers(found[0, list(prompt.places)])
        return _numbers(model(ids)[0])

    @torch.no_grad()
    def greedy(self, prompt: Prompt, count: int) -> list[int]:
        model, memory = self.model, None
        assert not isinstance(model, Encoder)
        fresh = self._row(prompt.target or prompt.ids)
        cache = KeyValueCache(model.config, 1, fresh.shape[1] + count, model.device)
        if isinstance(model, EncoderDecoder):
            memory = model.encode(self._row(prompt.ids))
        written: list[int] = []
        while len(written) < count:
            scores = model(fresh, memory, cache=cache) if memory is not None else model(fresh, cache=cache)
            written.append(int(scores[0, -1].argmax()))
            fresh = self._row(written[-1:])
        return written

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.model.device)


class Transformers:
    """A model folder in transformers."""

    def __init__(self, folder: Path, model: Model) -> None:
        import transformers

        self.model: Any
        name = DOES[model.config.kind][2] if model.config.has_head else "AutoModel"
        with _quiet():
            self.model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
        self.kind, self.has_head = model.config.kind, model.config.has_head

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> Logits:
        ids = torch.tensor([prompt.ids])
        if self.kind == "encoder-decoder":
            return _numbers(self.model(input_ids=ids, decoder_input_ids=torch.tensor([prompt.target])).logits[0])
        out = self.model(input_ids=ids)
        found = out.logits if self.has_head else out.last_hidden_state
        return _numbers(found[0, list(prompt.places)] if self.kind == "encoder" else found[0])

    @torch.no_grad()
    def greedy(self, prompt: Prompt, count: int) -> list[int]:
        # Not by `generate`, which also obeys what generation_config.json forbids and forces.
        written: list[int] = []
        asked: dict[str, Any] = {}
        if self.kind == "encoder-decoder":
            asked["encoder_outputs"] = self.model.get_encoder()(torch.tensor([prompt.ids]))
        name = "decoder_input_ids" if asked else "input_ids"
        fresh = list(prompt.target or prompt.ids)
        while len(written) < count:
            out = self.model(**{name: torch.tensor([fresh])}, **asked, use_cache=True)
            asked["past_key_values"] = out.past_key_values
            written.append(int(out.logits[0, -1].argmax()))
            fresh = written[-1:]
        return written


class LlamaCpp:
    """A GGUF file in llama.cpp, by llama-cpp-python."""

    def __init__(self, path: Path, context: int) -> None:
        import llama_cpp

        llama_cpp.llama_log_set(_silence(), None)  # what it says of small contexts would stand in our table
        exact: dict[str, Any] = {
            "type_k": llama_cpp.GGML_TYPE_F32,
            "type_v": llama_cpp.GGML_TYPE_F32,
        }  # else of 16 bits
        threads: dict[str, Any] = {"n_threads": torch.get_num_threads(), "n_threads_batch": torch.get_num_threads()}
        self.model: Any = llama_cpp.Llama(
            str(path), n_ctx=context, logits_all=True, verbose=False, n_gpu_layers=0, **threads, **exact
        )

    def logits(self, prompt: Prompt) -> Logits:
        self.model.reset()
        self.model.eval(list(prompt.ids))
        scores: Logits = np.array(self.model.scores[: len(prompt.ids)], dtype=np.float64)
        return scores

    def greedy(self, prompt: Prompt, count: int) -> list[int]:
        self.model.reset()
        fresh, written = list(prompt.ids), list[int]()
        while len(written) < count:
            self.model.eval(fresh)
            written.append(int(np.argmax(self.model.scores[self.model.n_tokens - 1])))
            fresh = written[-1:]
        return written


@cache
def _silence() -> Any:
    """A callback that says nothing. llama.cpp calls it to the end of the process, so it is kept."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def installed(name: str) -> bool:
    """Whether a library is there to compare with. Nothing is imported."""
    return find_spec(name) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and advice from the terminal."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _numbers(tensor: Tensor) -> Logits:
    numbers: Logits = tensor.double().cpu().numpy()
    return numbers
