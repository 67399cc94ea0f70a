"""Everything that training needs, prepared or read back: texts as tokens, a plan, and the objective."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rhapsode
from rhapsode.base.errors import InputError
from rhapsode.base.files import write_json
from rhapsode.corpus.corpus import Corpus
from rhapsode.tokenizer.store import TokenStore
from rhapsode.tokenizer.tokenizer import Tokenizer, span_token
from rhapsode.training.objectives.masked_tokens import MaskedTokens
from rhapsode.training.objectives.next_token import NextToken
from rhapsode.training.objectives.objective import Objective, ObjectiveName
from rhapsode.training.objectives.parallel_text import Pairs, ParallelText
from rhapsode.training.objectives.span_corruption import SpanCorruption, spans_in
from rhapsode.training.planner import Plan
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.settings import TrainSettings


@dataclass
class Job:
    """One run's parts."""

    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    train_tokens: TokenStore
    validation_tokens: TokenStore
    settings: TrainSettings
    plan: Plan
    device: torch.device

    def plan_written(self) -> None:
        write_json(self.run.plan, self.plan.as_json())
        self.run.write_settings(asdict(self.settings))

    @property
    def objective_name(self) -> ObjectiveName:
        """What the model is trained to do."""
        if self.settings.kind == "encoder-decoder":
            return "parallel text" if self.corpus.pairs else "span corruption"
        return "masked tokens" if self.settings.kind == "encoder" else "next token"

    def objective(self) -> Objective:
        """What the model is trained to do, and how it is examined.

        Raises:
            InputError: there is too little text, or the tokenizer lacks a token that it takes.
        """
        settings, tokenizer = self.settings, self.tokenizer
        context, seed = settings.context_length, settings.seed
        end_id, padding_id = tokenizer.end_of_text_id, tokenizer.padding_id
        assert end_id is not None
        assert padding_id is not None
        train, validation = self.train_tokens, self.validation_tokens
        if self.objective_name == "parallel text":
            enough = np.searchsorted(validation.documents, settings.validation_tokens)
            documents = validation.documents[: max(2, int(enough) + 1)]
            return ParallelText(
                Pairs(train.tokens, train.documents, end_id),
                Pairs(validation.tokens[: documents[-1]], documents, end_id),
                batch_size=settings.batch_size,
                context=context,
                seed=seed,
                start_id=padding_id,
                padding_id=padding_id,
            )
        examined = np.array(validation.tokens[: settings.validation_tokens])  # (validation_tokens,)
        if self.objective_name == "masked tokens":
            return MaskedTokens(
                train.tokens,
                examined,
                context=context,
                seed=seed,
                vocabulary_size=tokenizer.vocabulary_size,
                mask_id=self._required(tokenizer.mask_id, "a mask"),
                never=tokenizer.special_tokens.values(),
                share=settings.masked_share,
            )
        if self.objective_name == "span corruption":
            names = map(span_token, range(spans_in(context, settings.masked_share)))
            return SpanCorruption(
                train.tokens,
                examined,
                context=context,
                seed=seed,
                start_id=padding_id,
                end_id=end_id,
                sentinels=[self._required(tokenizer.special_tokens.get(name), name) for name in names],
                share=settings.masked_share,
            )
        bytes_of_text = len(tokenizer.decode(examined.tolist()).encode("utf-8"))
        return NextToken(train.tokens, examined, bytes_of_text=bytes_of_text, context=context, seed=seed)

    def _required(self, id: int | None, what: str) -> int:
        if id is None:
            raise InputError(
                f"has no token for {what}", where=self.tokenizer.where, todo="Let the run make its own tokenizer."
            )
        return id

    def identity(self) -> dict[str, str]:
        """What the checkpoints of this run belong to."""
        chosen = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode("utf-8")).hexdigest()
        return {
            "settings": digest,
            "data": self.train_tokens.fingerprint,
            "corpus": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.digest,
        }

    def provenance(self) -> dict[str, Any]:
        """What the model folders say of where they come from."""
        return {
            "made_by": f"rhapsode {rhapsode.__version__}",
            "objective": self.objective_name,
            "data": {"corpus": self.corpus.fingerprint, "tokens": self.train_tokens.fingerprint},
            "tokenizer": {"kind": self.tokenizer.kind, "sha256": self.tokenizer.digest},
            "settings": {name: value for name, value in asdict(self.settings).items() if not isinstance(value, Path)},
            "versions": versions(),
            "parent": None,
        }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import numpy
    import tokenizers

    return {
        "rhapsode": rhapsode.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
    }
