"""From texts to a job: a corpus read, a tokenizer made, tokens on disk, everything planned; or all of it read back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.base.machine import prepare
from rhapsode.base.settings import given, overridden, read_yaml, validated
from rhapsode.corpus.corpus import Corpus
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.corpus.sides import sides_of
from rhapsode.tokenizer.store import TokenStore, TokenStores, build_token_store
from rhapsode.tokenizer.tokenizer import MASK, Tokenizer, span_token
from rhapsode.tokenizer.train import train_tokenizer
from rhapsode.training.expectation import PairLengths, Text, compressed
from rhapsode.training.job import Job
from rhapsode.training.objectives.parallel_text import Pairs, ParallelText
from rhapsode.training.planner import DEFAULTS, Plan, choose_tokenizer, make_plan
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.settings import UNSET, TrainSettings

SECONDS_AFTER_LAST_STEP = 2.5
"""Copying the best model and writing the report."""

MAY_STAY_OPEN = ("minutes", "memory", "tokenizer_folder", "decoder_layers")
"""Settings that mean something when they are None; every other one of a run is resolved."""

MOST_SPANS = 100
"""Tokens for spans that a tokenizer of a span-corrupted text gets."""
WORDS_WITH_GAPS, GAP_EVERY = 24, 6


def _read_corpus(run: RunFolder, texts: Sequence[str], reading: dict[str, Any]) -> Corpus:
    if len(texts) == 1 and texts[0] != "-" and Corpus.is_corpus(Path(texts[0])):
        if reading:
            raise InputError(
                f"{', '.join(sorted(reading))}: a prepared corpus has been read already",
                where=texts[0],
                todo="Give these to `rhapsode corpus`.",
            )
        return Corpus.open(Path(texts[0]))
    return prepare_corpus(texts, run.corpus, force=True, **reading)


def prepare_job(
    run: RunFolder, texts: Sequence[str], settings: TrainSettings, started: float, reading: dict[str, Any]
) -> Job:
    """Corpus, tokenizer, token stores and plan of a new run."""
    device = prepare(settings.device or "auto", settings.threads)
    minutes = settings.minutes or (UNSET if settings.steps else 10.0)
    settings = overridden(settings, TrainSettings(minutes=minutes, threads=torch.get_num_threads()))
    run.say(f"Reading {', '.join(texts)}")
    corpus = _read_corpus(run, texts, reading)
    settings = _of_a_kind(settings, corpus)
    kind, size, reason = choose_tokenizer(settings, corpus.bytes("train"), minutes or 10.0)
    if settings.tokenizer_folder:
        tokenizer = Tokenizer.load(settings.tokenizer_folder)
        reason = f"read from {settings.tokenizer_folder}"
    else:
        spans = MOST_SPANS if settings.kind == "encoder-decoder" and not corpus.pairs else 0
        tokenizer = train_tokenizer(_texts(corpus), kind, size or None, model=settings.kind, spans=spans)
    if tokenizer.end_of_text_id is None or tokenizer.padding_id is None:
        raise InputError("has no end-of-text or padding token", where=str(settings.tokenizer_folder))
    tokenizer.save(run.tokenizer)
    stores = build_token_store(corpus, tokenizer, run.tokens)
    text = _known_of(corpus, stores, tokenizer)
    settings = overridden(overridden(DEFAULTS, settings), TrainSettings(vocabulary_size=tokenizer.vocabulary_size))
    if not settings.tokenizer:
        settings = overridden(settings, TrainSettings(tokenizer=kind))
    seconds = None
    if minutes:
        seconds = 60 * minutes - (time.time() - started) - SECONDS_AFTER_LAST_STEP
        if seconds < 1:
            raise InputError(
                f"reading and preparing the text took {time.time() - started:.0f} s; nothing is left of the "
                f"{minutes:g} minutes to train in",
                todo="Ask for more --minutes, or prepare the text first with `rhapsode corpus`.",
            )
    plan = make_plan(settings, text, reason, device, seconds, start_id=tokenizer.padding_id)
    context = plan.settings.context_length
    if plan.settings.sample_prompt is UNSET:
        plan = plan.with_settings(sample_prompt=_sample_prompt(corpus, tokenizer, plan.settings))
    elif (length := len(tokenizer.encode(plan.settings.sample_prompt, special=True))) > context:
        raise InputError(f"has {length} tokens; the model's context has {context}", where="--sample-prompt")
    job = Job(run, corpus, tokenizer, stores.train, stores.validation, plan.settings, plan, device)
    objective = job.objective()  # texts that are too short are refused before there is a run
    if isinstance(objective, ParallelText) and objective.too_long:
        run.say(f"{objective.too_long:,} pairs are left out: a side of them is longer than {context} tokens.")
    return job


def _of_a_kind(settings: TrainSettings, corpus: Corpus) -> TrainSettings:
    """The settings with what follows from the kind of model, which pairs of texts decide where nobody does.

    Raises:
        InputError: pairs of texts are for another kind.
    """
    kind = settings.kind or ("encoder-decoder" if corpus.pairs else "decoder")
    if corpus.pairs and kind != "encoder-decoder":
        raise InputError(f"pairs of texts do not train a {kind}", where="--kind", todo="Leave it out.")
    return overridden(TrainSettings(kind=kind), settings)


def _texts(corpus: Corpus) -> Iterator[str]:
    """What a tokenizer is made from: the training text, of pairs each side for itself."""
    if corpus.pairs:
        return (side for document in corpus.documents("train") for side in sides_of(document))
    return (piece for piece, _ in corpus.pieces("train"))


def _known_of(corpus: Corpus, stores: TokenStores, tokenizer: Tokenizer) -> Text:
    """What the planner should know of the text."""
    lengths = None
    if corpus.pairs:
        assert tokenizer.end_of_text_id is not None
        source, target = Pairs(stores.train.tokens, stores.train.documents, tokenizer.end_of_text_id).lengths()
        longest = int(np.quantile(np.maximum(source, target), 0.999))
        lengths = PairLengths(len(source), float(source.mean()), float(target.mean()), longest)
    return Text(
        tokens=len(stores.train.tokens),
        bytes=corpus.bytes("train"),
        validation_tokens=len(stores.validation.tokens),
        compressed_bits_per_byte=compressed(next(_texts(corpus))[:200_000]),
        pairs=lengths,
    )


def _sample_prompt(corpus: Corpus, tokenizer: Tokenizer, settings: TrainSettings) -> str:
    """What the samples of a run begin with, are filled into, or are a translation of."""
    beginning = next(corpus.documents("validation")) if corpus.pairs else next(corpus.pieces("validation"))[0]
    if corpus.pairs:
        return sides_of(beginning)[0]
    if settings.kind == "decoder":
        prompt = beginning[:24].rpartition(" ")[0]
        while len(tokenizer.encode(prompt)) > settings.context_length // 2:
            prompt = prompt[:-1]
        return prompt
    words = beginning.split()[:WORDS_WITH_GAPS]
    gap = MASK if settings.kind == "encoder" else span_token(0)
    if settings.kind == "encoder":
        words[GAP_EVERY - 1 :: GAP_EVERY] = [gap] * len(words[GAP_EVERY - 1 :: GAP_EVERY])
    else:
        words[GAP_EVERY : GAP_EVERY + 2] = [gap]
    prompt = " ".join(words)
    while len(tokenizer.encode(prompt, special=True)) > settings.context_length - 2:
        prompt = prompt.rpartition(" ")[0]
    return prompt


def reopen_job(run: RunFolder, texts: Sequence[str], settings: TrainSettings, reading: dict[str, Any]) -> Job:
    """An existing run as it was planned.

    Raises:
        MismatchError: what is given now differs from what the run was made with; the message lists the differences.
    """
    saved = validated(TrainSettings, read_yaml(run.settings), str(run.settings))
    if missing := [name for name, value in asdict(saved).items() if value is None and name not in MAY_STAY_OPEN]:
        raise DamagedError(f"a value is missing for {', '.join(missing)}", where=str(run.settings))
    if reading and not texts:
        raise InputError(
            f"{', '.join(sorted(reading))}: no text is read, as none was given",
            todo="Name the texts of the run again, or leave these out.",
        )
    differences = [
        f"{name} was {getattr(saved, name)} and is {value} now"
        for name, value in given(settings).items()
        if getattr(saved, name) != value and name not in ("tokenizer_folder", "threads", "device")
    ]
    if not Corpus.is_corpus(run.corpus) and not texts:
        raise InputError("its corpus lies elsewhere", where=str(run.path), todo="Name the corpus again.")
    corpus = Corpus.open(run.corpus) if Corpus.is_corpus(run.corpus) else Corpus.open(Path(texts[0]))
    tokenizer = Tokenizer.load(run.tokenizer)
    if texts:
        with tempfile.TemporaryDirectory(prefix="rhapsode-compare-") as folder:
            now = _read_corpus(RunFolder(Path(folder)), texts, reading)
            if now.fingerprint != corpus.fingerprint:
                differences.append(
                    f"the text had {corpus.bytes('train'):,} bytes for training with fingerprint "
                    f"{corpus.fingerprint[:12]} and has {now.bytes('train'):,} with {now.fingerprint[:12]} now"
                )
    if settings.tokenizer_folder and (other := Tokenizer.load(settings.tokenizer_folder)).digest != tokenizer.digest:
        differences.append(f"the tokenizer was {tokenizer.digest[:12]} and is {other.digest[:12]} now")
    if differences:
        raise MismatchError(
            f"this run was made otherwise: {'; '.join(differences)}",
            where=str(run.path),
            todo="Resume it as it was, or start another run with --out.",
        )
    if settings.threads and settings.threads != saved.threads:
        run.say(f"Computing with {settings.threads} threads, not {saved.threads}: the last bits will differ.")
    train_tokens, validation_tokens = (
        TokenStore.open(run.tokens / split, tokenizer=tokenizer, corpus=corpus) for split in ("train", "validation")
    )
    for store in (train_tokens, validation_tokens):
        store.verify()
    plan = Plan.from_json(run.plan, saved, tokenizer.vocabulary_size, tokenizer.padding_id)
    device = prepare(settings.device or saved.device, settings.threads or saved.threads)
    return Job(run, corpus, tokenizer, train_tokens, validation_tokens, saved, plan, device)
