"""A model with weights of 8 or 4 bits, and what that costs: perplexity, and the divergence of the next token.

    rhapsode quantize runs/mytext --bits 8 --out mytext-8bit

The cost is that of the steps that write texts here: where kernels compute them, they round what weights are multiplied
with, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import rhapsode
from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.files import new_folder
from rhapsode.base.progress import Progress
from rhapsode.exchange.doors import generation_of, require_free, source_of
from rhapsode.exchange.opened import Opened
from rhapsode.exchange.opening import open_model
from rhapsode.inference.block_pool import blocks_of
from rhapsode.inference.evaluation import LOGITS_AT_ONCE, windows
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.step import Reading, Step
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel, pack_model, require_packable
from rhapsode.model.packed_folder import save_packed
from rhapsode.tokenizer.store import TokenStore
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.training.run_folder import RunFolder

MEASURED = 20_000
"""Tokens at most over which the loss is measured."""
LONGEST_WINDOW = 1024
"""Tokens of a window there, where the context is longer."""
LONGEST_TOKEN = 64
"""Characters, more or less: of long documents no more is read than so many for each token."""


@dataclass(frozen=True)
class Loss:
    """What quantisation costs over a text."""

    tokens: int
    """Predicted tokens."""
    nats: float
    """Mean of -ln p(token) with weights in fp32."""
    packed_nats: float
    """The same with packed weights."""
    divergence: float
    """Mean KL(fp32 || packed) of the next token's distribution, in nats."""

    @property
    def perplexity(self) -> float:
        """exp(nats)."""
        return math.exp(self.nats)

    @property
    def packed_perplexity(self) -> float:
        """exp(packed_nats)."""
        return math.exp(self.packed_nats)

    @property
    def increase(self) -> float:
        """Of the perplexity, as a share of it."""
        return math.exp(self.packed_nats - self.nats) - 1


@dataclass(frozen=True)
class Quantized:
    """A folder of packed weights."""

    path: Path
    bits: int
    bytes_before: int
    """Of all weights in fp32."""
    bytes_after: int
    """Of all weights as they are packed."""
    loss: Loss | None
    """None where there was no text."""


def quantize(
    model: Path | str, out: Path, bits: int, *, documents: Iterable[str] | None = None, force: bool = False
) -> Quantized:
    """Write a model as a folder of packed weights.

    Args:
        model: whatever `open_model` opens.
        out: the folder, which must not be there.
        bits: 8 or 4.
        documents: texts over which the loss is measured, as far as `MEASURED` tokens reach; the validation data of a
            run where it is None.
        force: replace what is there.

    Raises:
        InputError: as `open_model` and `pack_model`; `out` is there; it is quantised already; or there is no text.
        NotFiniteError: the model computes values that are not finite.
    """
    require_free(out, force)
    opened = open_model(model)
    if isinstance(opened.weights, PackedModel):
        raise InputError(
            "is quantised already", where=opened.where, todo="Quantise the model that it was made from, once."
        )
    require_packable(opened.config, opened.where)
    decoder = opened.weights
    assert isinstance(decoder, Decoder)
    if documents is None:
        tokens = _validation_tokens(Path(model), opened.tokenizer)
    else:
        tokens = _first_tokens(opened.tokenizer, documents)
    with Progress("packing", decoder.config.parameters, "numbers") as progress:
        packed = pack_model(decoder, bits, progress)
    loss = None
    if tokens is not None:
        context = min(decoder.config.context_length, LONGEST_WINDOW)
        step = LanguageModel(packed, opened.tokenizer, where=opened.where).step(blocks_of(context))
        loss = measured(decoder, step, tokens)
    with new_folder(out, replace=force) as folder:
        provenance = _provenance(opened, bits, loss)
        save_packed(folder, packed, opened.tokenizer, provenance, generation=generation_of(opened), quiet=False)
    before = sum(weight.numel() for weight in decoder.parameters()) * 4
    return Quantized(out, bits, before, packed.nbytes, loss)


@torch.no_grad()
def measured(model: Decoder, step: Step, tokens: npt.NDArray[np.integer[Any]]) -> Loss:
    """What a text costs a model with rounded weights more than the same one without, in windows side by side.

    Args:
        model: in fp32.
        step: computes steps with rounded weights; its cache has room for a window, of the model's context or
            `LONGEST_WINDOW` tokens.
        tokens: (tokens,); no more than `MEASURED` are predicted.

    Raises:
        InputError: fewer than two tokens.
        NotFiniteError: a model computes values that are not finite.
    """
    tokens = tokens[: MEASURED + 1]
    if len(tokens) < 2:
        raise InputError(
            f"a text of {len(tokens)} tokens is too short to be predicted", todo="Give at least two with --texts."
        )
    context = min(model.config.context_length, LONGEST_WINDOW)
    rows = max(1, LOGITS_AT_ONCE // model.config.vocabulary_size)
    nats, divergence = np.zeros(2), 0.0
    with Progress("measuring", len(tokens) - 1, "tokens") as progress:
        for start, end, _ in windows(len(tokens), context, context):
            ids = torch.from_numpy(tokens[start : end + 1].astype(np.int64))
            hidden = model.hidden(ids[None, :-1])[0]  # (time, hidden)
            blocks = range(blocks_of(end - start))
            for first in range(0, end - start, rows):
                wanted = ids[1:][first : first + rows, None]
                read = ids[first : first + len(wanted)].tolist()
                (logits,) = step([Reading(read, blocks, first, len(read))])
                ours = model.head(hidden[first : first + rows]).float().log_softmax(dim=-1)  # (some, vocabulary)
                theirs = torch.from_numpy(logits).log_softmax(dim=-1)
                nats -= [float(logs.gather(1, wanted).double().sum()) for logs in (ours, theirs)]
                divergence += float((ours.exp() * (ours - theirs)).sum(dtype=torch.float64))
            progress.advance(end - start)
    count = len(tokens) - 1
    if not np.isfinite((*nats, divergence)).all():
        raise NotFiniteError("the model computes values that are not finite", todo="Its weights are damaged.")
    return Loss(count, float(nats[0]) / count, float(nats[1]) / count, divergence / count)


def _first_tokens(tokenizer: Tokenizer, documents: Iterable[str]) -> npt.NDArray[np.uint32]:
    """Of texts, each followed by an end of text as in training, as many tokens as are measured."""
    end = np.array([] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id], dtype=np.uint32)
    parts: list[npt.NDArray[np.uint32]] = []
    found = 0
    for text in documents:
        (ids,) = tokenizer.encode_batch([text[: LONGEST_TOKEN * MEASURED]])
        parts += [ids.astype(np.uint32), end]
        found += len(ids)
        if found > MEASURED:
            break
    if not found:
        raise InputError("there is no text in what was named", where="--texts", todo="Name texts that are not empty.")
    return np.concatenate(parts)


def _validation_tokens(model: Path, tokenizer: Tokenizer) -> npt.NDArray[np.integer[Any]] | None:
    """The tokens on which a run was validated; None where it is no run, nor the model or a checkpoint of one."""
    for folder in (model, *model.absolute().parents[:2]):
        run = RunFolder(folder)
        store = run.tokens / "validation"
        if model.is_dir() and run.settings.exists() and store.is_dir():
            return TokenStore.open(store, tokenizer=tokenizer).tokens
    return None


def _provenance(opened: Opened, bits: int, loss: Loss | None) -> dict[str, Any]:
    """A model's own record goes on; its parent is the model that was quantised."""
    before = opened.provenance or {"tokenizer": {"kind": opened.tokenizer.kind, "sha256": opened.tokenizer.digest}}
    parent = source_of(opened) | ({"parent": before["parent"]} if before.get("parent") is not None else {})
    quantization: dict[str, Any] = {"bits": bits}
    if loss is not None:
        quantization |= {
            "measured_on_tokens": loss.tokens,
            "perplexity_in_fp32": loss.perplexity,
            "perplexity": loss.packed_perplexity,
            "kl_divergence_nats": loss.divergence,
        }
    made_by = f"rhapsode {rhapsode.__version__}"
    return before | {"made_by": made_by, "parent": parent, "quantization": quantization}
