"""A model folder, loaded: what one can ask of a language model.

model = rhapsode.load("runs/mytext")
print(model.generate("Once upon a time", temperature=0.8).text)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhapsode.base.errors import InputError, MismatchError
from rhapsode.base.machine import device as device_called
from rhapsode.base.progress import Progress
from rhapsode.base.settings import validated
from rhapsode.exchange.opening import open_model
from rhapsode.inference.beams import BeamSearch
from rhapsode.inference.cache_type import NUMBER_BYTES, CacheType
from rhapsode.inference.engine import Engine
from rhapsode.inference.evaluation import token_losses
from rhapsode.inference.kernels.choice import check_cache_type, kernel_step, refused
from rhapsode.inference.reading import Filling, Pooling, embed, fill, pseudo_log_probabilities
from rhapsode.inference.sampling import Sampling, distribution
from rhapsode.inference.speculation import DraftModel, PromptLookup, Speculation
from rhapsode.inference.step import Step, TorchStep, room_for_blocks
from rhapsode.inference.text import FinishReason, Piece, check_prompt
from rhapsode.inference.translation import Translation, folder_search, translate
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.model import Model
from rhapsode.model.packed import PackedModel, unpacked_model
from rhapsode.tokenizer.tokenizer import TURN_END, Tokenizer


@dataclass(frozen=True)
class Generation:
    """A text that a model wrote."""

    text: str
    """What follows the prompt."""
    ids: list[int]
    """The tokens drawn, one that ended the text included."""
    finish_reason: FinishReason
    """Why it ends."""


@dataclass(frozen=True)
class Found(Generation):
    """A text that a search has found."""

    score: float
    """The sum of ln p of its tokens, divided by their number to the power of the length penalty."""


@dataclass(frozen=True)
class NextToken:
    """One candidate for the next token."""

    id: int
    """The token."""
    text: str
    """What it stands for; bytes that are no whole character as the replacement character."""
    probabilities: list[float]
    """Its probability at each temperature."""


@dataclass(frozen=True)
class Score:
    """How likely a text is to a model."""

    nats_per_token: float
    """Mean of -ln p(token) over all tokens that have one."""
    ids: list[int]
    """The tokens of the text."""
    log_probabilities: list[float | None]
    """ln p of each token: after those before it, None for the first; to an encoder, given all others."""


INSTEAD = {
    "decoder": "It continues text: `rhapsode generate`.",
    "encoder": "It fills gaps and compares texts: `rhapsode fill`, `rhapsode embed`.",
    "encoder-decoder": "It turns one text into another: `rhapsode translate`.",
}
"""What to do with a model of a kind, where something else was asked of it."""


class LanguageModel:
    """A model of any of the three kinds and its tokenizer. What a kind cannot do is refused, with what can.

    Args:
        model: the model; it stays where it is. Of packed weights one in fp32 is made only when it is asked for.
        tokenizer: its tokenizer.
        end_ids: tokens that end a text besides the tokenizer's end of text, and besides the end of a turn where a
            model of Rhapsode is tuned for chat.
        search: how an encoder-decoder searches for texts unless told otherwise.
        provenance: the content of its rhapsode.json; None for a model made elsewhere.
        where: what messages call it.
        device: where packed weights are unpacked to.

    Attributes:
        packed: its packed weights, where it has such.

    Raises:
        MismatchError: the tokenizer does not fit the model's vocabulary.
    """

    def __init__(
        self,
        model: Model | PackedModel,
        tokenizer: Tokenizer,
        *,
        end_ids: Sequence[int] = (),
        search: BeamSearch | None = None,
        provenance: dict[str, Any] | None = None,
        where: str = "model",
        device: torch.device | str = "cpu",
    ) -> None:
        rows, tokens = model.config.vocabulary_size, tokenizer.vocabulary_size
        # Others round the vocabulary of a model up to a size that computes well.
        ours = provenance is not None and provenance.get("parent") is None
        if tokens > rows or (tokens < rows and ours):
            raise MismatchError(
                f"the tokenizer has {tokens} tokens, the model's vocabulary {rows}",
                where=where,
                todo="Use the tokenizer that the model was trained with.",
            )
        self.packed = model if isinstance(model, PackedModel) else None
        self._model = None if isinstance(model, PackedModel) else model
        self._device = device
        self.tokenizer, self.provenance, self.where = tokenizer, provenance, where
        self.usual_search = search or BeamSearch()
        own = [] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]
        if provenance is not None and provenance.get("objective") == "chat" and TURN_END in tokenizer.special_tokens:
            own.append(tokenizer.special_tokens[TURN_END])
        self.end_ids = frozenset((*own, *end_ids))
        self._engine: Engine | None = None
        self._engine_changes = 0
        self._speculation: Speculation | None = None
        self.cache_bytes: int | None = None
        self.cache_type: CacheType = "float32"
        self.use_kernels, self.step_by = True, ""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config if self.packed is None else self.packed.config

    @property
    def model(self) -> Model:
        """The model in fp32. Packed weights are unpacked for it once, and take four times their memory and more."""
        if self._model is None:
            assert self.packed is not None
            self._model = unpacked_model(self.packed, self._device)
        return self._model

    @property
    def weight_bytes(self) -> int:
        """Memory that its weights take now."""
        of_model = 0 if self._model is None else sum(weight.nbytes for weight in self._model.parameters())
        return of_model + (0 if self.packed is None else self.packed.nbytes)

    def require_decoder(self) -> None:
        """Refuse a model of another kind.

        Raises:
            InputError: it cannot continue text.
        """
        if self.config.kind != "decoder":
            raise self._unsuited("only a decoder continues text")

    def decoder(self) -> Decoder:
        """The model as one that continues text; errors as `require_decoder`."""
        self.require_decoder()
        assert isinstance(self.model, Decoder)
        return self.model

    def encoder_decoder(self) -> EncoderDecoder:
        """The model as one that turns one text into another.

        Raises:
            InputError: it is of another kind.
        """
        if self.config.kind != "encoder-decoder":
            raise self._unsuited("only an encoder-decoder turns one text into another")
        assert isinstance(self.model, EncoderDecoder)
        return self.model

    def encoder(self) -> Encoder:
        """The model as one that reads in both directions.

        Raises:
            InputError: it is of another kind.
        """
        if self.config.kind != "encoder":
            raise self._unsuited("only an encoder fills gaps")
        assert isinstance(self.model, Encoder)
        return self.model

    def _unsuited(self, why: str) -> InputError:
        kind = self.config.kind
        article = "a" if kind == "decoder" else "an"
        return InputError(f"this is {article} {kind}; {why}", where=self.where, todo=INSTEAD[kind])

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt, after what stands before every text, as `<s>` in Llama's form.

        An empty one is the beginning of a text: what follows an end of text.

        Raises:
            InputError: the prompt is longer than the context, or empty where no token ends a text.
        """
        ids = self.tokenizer.frame[0] + self.tokenizer.encode(prompt)
        if not ids and self.tokenizer.end_of_text_id is not None:
            ids = [self.tokenizer.end_of_text_id]
        check_prompt(ids, self.config.context_length)
        return ids

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits (batch, time, vocabulary) of the token after each one in ids (batch, time).

        Raises:
            InputError: more tokens than the context length.
        """
        logits: Tensor = self.decoder()(ids.to(self.model.device))
        return logits

    def stream(self, prompt: str, sampling: Sampling | None = None, **settings: Any) -> Iterator[Piece]:
        """Continue a prompt, piece by piece as it is written.

        Args:
            sampling: how; the defaults of `Sampling` if None.
            settings: fields of `Sampling` that shall be otherwise.

        Raises:
            InputError: an unknown setting, one out of range, or as `encode_prompt`.
        """
        return self.stream_several(prompt, [_chosen(sampling, settings)])

    def stream_several(self, prompt: str, samplings: Sequence[Sampling]) -> Iterator[Piece]:
        """Continue a prompt several times side by side, once for each of `samplings`; errors as `stream`."""
        return self.stream_ids(self.encode_prompt(prompt), samplings)

    def stream_ids(self, prompt: Sequence[int], samplings: Sequence[Sampling]) -> Iterator[Piece]:
        """As `stream_several`, after a prompt of ids, as they are."""
        engine = self.engine()
        return engine.pieces(engine.submit(prompt, samplings, self.end_ids))

    def engine(self) -> Engine:
        """What writes this model's texts. It remembers what was read, so that the next prompt may begin alike.

        Its cache takes at most `cache_bytes`, if that is not None.

        Raises:
            InputError: the model is of another kind.
        """
        self.require_decoder()
        if self._engine is None or self._changes() != self._engine_changes:
            context = self.config.context_length
            self._engine = Engine(self.step(), self.tokenizer, context, speculation=self._speculation)
            self._engine_changes = self._changes()
        return self._engine

    def step(self, blocks: int | None = None) -> Step:
        """What computes this model's steps, with a cache of its own; `step_by` then says who that is.

        Args:
            blocks: of the cache; None for as many as there is room for.

        Raises:
            InputError: the cache is wanted in a form that only kernels have, which cannot be used here.
        """
        source = self.packed or self.decoder()
        why = refused(source, self._device) if self.use_kernels else "kernels are not wanted"
        if why is None:
            self.step_by = "kernels"
            on, size = torch.device("cpu"), NUMBER_BYTES[self.cache_type]
        else:
            check_cache_type(self.cache_type, why)
            self.step_by = f"torch, because {why}"
            on, size = self.decoder().device, self.decoder().embedding.weight.element_size()
        if blocks is None:
            blocks = room_for_blocks(self.config, on, self.cache_bytes, number_bytes=size)
        return kernel_step(source, blocks, self.cache_type) if why is None else TorchStep(self.decoder(), blocks)

    def _changes(self) -> int:
        """Grows when a weight is changed in place."""
        return 0 if self._model is None else sum(weight._version for weight in self._model.parameters())

    def speculate(self, by: LanguageModel | Literal["prompt"] | None) -> None:
        """Guess tokens, and read several at once where that is faster; what is written stays the same.

        Args:
            by: "prompt" guesses what followed the last tokens before; a smaller model guesses what it would write;
                None guesses nothing.

        Raises:
            MismatchError: the smaller model has another tokenizer.
        """
        if isinstance(by, LanguageModel) and by.tokenizer.definition != self.tokenizer.definition:
            raise MismatchError(
                "its tokenizer is another one",
                where=by.where,
                todo="A draft model must have the model's own tokenizer.",
            )
        speculation = DraftModel(by.decoder()) if isinstance(by, LanguageModel) else PromptLookup() if by else None
        self._speculation = self.engine().speculation = speculation

    def generate(self, prompt: str, sampling: Sampling | None = None, **settings: Any) -> Generation:
        """Continue a prompt; arguments and errors as `stream`."""
        return self.generate_several(prompt, [_chosen(sampling, settings)])[0]

    def generate_several(self, prompt: str, samplings: Sequence[Sampling]) -> list[Generation]:
        """As `stream_several`, when all texts are written."""
        texts, ids = [""] * len(samplings), [list[int]() for _ in samplings]
        reasons: dict[int, FinishReason] = {}
        for piece in self.stream_several(prompt, samplings):
            texts[piece.row] += piece.text
            ids[piece.row].append(piece.token)
            if piece.finish_reason is not None:
                reasons[piece.row] = piece.finish_reason
        return [Generation(text, ids[row], reasons[row]) for row, text in enumerate(texts)]

    def search(
        self,
        prompt: str,
        search: BeamSearch | None = None,
        *,
        sampling: Sampling | None = None,
        count: int | None = None,
        **settings: Any,
    ) -> list[Found]:
        """The most likely texts after a prompt, the best first; none where nothing at all may follow it.

        Args:
            search: how they are searched for; the defaults of `BeamSearch` if None.
            sampling: bans, stops, and what the texts are held to; None for nothing of it.
            count: texts to give, at most as many as there are beams; None for all that were found.
            settings: fields of `BeamSearch` that shall be otherwise.

        Raises:
            InputError: as `encode_prompt` and `Engine.search`, an unknown setting, or one out of range.
        """
        chosen = validated(BeamSearch, vars(search or BeamSearch()) | settings, "search")
        engine, ids = self.engine(), self.encode_prompt(prompt)
        request = engine.search(ids, chosen, self.end_ids, sampling=sampling or Sampling(), count=count)
        found = []
        for piece in engine.pieces(request):
            assert piece.finish_reason is not None
            score = request.hypotheses[piece.row].score
            found.append(Found(piece.text, list(piece.ids), piece.finish_reason, score))
        return found

    def next_token(self, prompt: str, temperatures: Sequence[float] = (1.0,), *, top: int = 10) -> list[NextToken]:
        """The `top` most likely next tokens, the most likely first (temperature does not change the order).

        Raises:
            InputError: as `encode_prompt`, a temperature below zero, or `top` below one.
        """
        if top < 1:
            raise InputError(f"top must be at least 1, not {top}")
        samplings = [Sampling(temperature=temperature, top_p=1.0) for temperature in temperatures]
        scores = self.logits(torch.tensor([self.encode_prompt(prompt)]))[0, -1, : self.tokenizer.vocabulary_size]
        logits = scores.double().cpu().numpy()  # (vocabulary,)
        columns = [distribution(logits, sampling) for sampling in samplings]
        order = np.argsort(-logits, kind="stable")[:top].tolist()
        return [NextToken(id, self.token_text(id), [float(column[id]) for column in columns]) for id in order]

    def token_text(self, id: int) -> str:
        """What a token stands for; bytes that are no whole character become the replacement character."""
        return self.tokenizer.id_to_bytes(id).decode("utf-8", errors="replace")

    def score(self, text: str) -> Score:
        """How likely each token of a text is: to a decoder after those before it, to an encoder given all the others.

        A decoder reads long texts in overlapping windows. What an encoder says of tokens does not add up to the
        probability of the text (pseudo-likelihood): it compares texts, for the same model.

        Raises:
            InputError: the text has fewer than two tokens (to an encoder, none), is longer than an encoder's context,
                or the model is of another kind.
        """
        if isinstance(self.model, Encoder):
            ids, found = pseudo_log_probabilities(self.model, self.tokenizer, text)
            return Score(-sum(found) / len(found), ids, [*found])
        ids = self.tokenizer.encode(text)
        context = self.config.context_length
        losses = token_losses(self.decoder(), np.array(ids), context=context, stride=max(1, context // 2))
        nats = np.concatenate(list(losses)).astype(np.float64)  # (tokens - 1,)
        return Score(float(nats.mean()), ids, [None, *(-nats).tolist()])

    def fill_mask(self, text: str, *, top: int = 5) -> Filling:
        """The most likely tokens for each gap in a text; a gap is named, as <|mask|> or [MASK].

        Raises:
            InputError: no gap, a text longer than the context, `top` below one, or a model that is no encoder or has no
                head.
        """
        return fill(self.encoder(), self.tokenizer, text, top)

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        pooling: Pooling = "mean",
        *,
        normalise: bool = True,
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """A vector for each text, (texts, hidden); at length one if `normalise`, so that a dot product is a cosine.

        Args:
            texts: a text may be ids, which are read as they are.
            pooling: the mean of all tokens' last hidden states, the last token's, or the first one's ("cls").
            progress: advanced by the texts read.

        Raises:
            InputError: a text that is longer than the context or has no tokens, or a pooling that says nothing here.
        """
        _require_several(texts)
        return embed(self.model, self.tokenizer, texts, pooling, normalise=normalise, progress=progress)

    def translate(self, texts: Sequence[str], search: BeamSearch | None = None, **settings: Any) -> list[str]:
        """What an encoder-decoder makes of each text; arguments and errors as `translations`.

        A text of the greatest length is given as far as it goes; `translations` tells which ones those are.
        """
        return [translation.text for translation in self.translations(texts, search, **settings)]

    def translations(
        self,
        texts: Iterable[str],
        search: BeamSearch | None = None,
        *,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Iterator[Translation]:
        """What an encoder-decoder makes of each text, in their order, as it comes.

        Args:
            search: how texts are searched for; None for what the model folder says.
            progress: advanced by the texts translated.
            settings: fields of `BeamSearch` that shall be otherwise.

        Raises:
            InputError: the model is of another kind, a text is longer than its context, an unknown setting, or one
                out of range.
        """
        _require_several(texts)
        model = self.encoder_decoder()
        chosen = validated(BeamSearch, vars(search or self.usual_search) | settings, "translation")
        return translate(model, self.tokenizer, texts, chosen, self.end_ids, progress=progress)


def _require_several(texts: Iterable[Any]) -> None:
    if isinstance(texts, str):  # a string is a list of strings, each a character
        raise InputError("there is one text where a list of texts is wanted", todo="Write [text].")


def _chosen(sampling: Sampling | None, settings: dict[str, Any]) -> Sampling:
    return validated(Sampling, vars(sampling or Sampling()) | settings, "generation")


def load(name: Path | str, device: str = "auto", *, tokenizer: Path | str | None = None) -> LanguageModel:
    """The language model that a path or name stands for.

    Args:
        name: a model folder, a run folder, whose `model/` it then is, a GGUF file, a checkpoint of llama2.c, or the
            name of a model on the Hugging Face hub (docs/exchange.md).
        device: "auto" (the fastest there is), "cpu", "cuda" or "mps".
        tokenizer: its tokenizer's file or folder, where it is not where its format has it.

    Raises:
        InputError: no model there, or one that is damaged, of an unknown architecture, or names code.
        MismatchError: the tokenizer is not the model's.
    """
    given = None if tokenizer is None else Path(tokenizer)
    opened = open_model(name, device_called(device), tokenizer=given)
    # Encoder-decoders come in folders only, which say how they want to be searched.
    search = folder_search(Path(opened.where)) if opened.config.kind == "encoder-decoder" else None
    return LanguageModel(
        opened.weights,
        opened.tokenizer,
        end_ids=opened.end_ids,
        search=search,
        provenance=opened.provenance,
        where=opened.where,
        device=opened.device,
    )
