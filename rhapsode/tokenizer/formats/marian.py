"""source.spm, target.spm and vocab.json: Marian's translators (opus-mt).

Two SentencePiece models cut the two languages; the ids of both come from one vocab.json. A tokenizer.json holds one
way of cutting, so there are two: that of the source, and as its `target` that of the target, with the same ids.
"""

from __future__ import annotations

from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.files import parse_json
from rhapsode.tokenizer.definition import definition, unigram
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files, sentencepiece
from rhapsode.tokenizer.formats.beside import Beside, Opened, Token

FILES = ("source.spm", "target.spm", "vocab.json")
ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def find(folder: Path) -> Path | None:
    """The source model in `folder`, when all three files are there."""
    return folder / FILES[0] if all((folder / name).is_file() for name in FILES) else None


def recognise(file: Path, data: bytes) -> bool:
    """Whether `file` is one of the three, with the others beside it."""
    return file.name in FILES and find(file.parent) is not None


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of the source language, with that of the target.

    Raises:
        InputError: the two languages have separate ids, or the models are not unigram models.
        DamagedError: one of the files is not what it should be.
    """
    source_file, target_file, vocabulary_file = (file.with_name(name) for name in FILES)
    if beside.flag("separate_vocabs", False):
        raise InputError(
            "its two languages have separate ids (separate_vocabs), which cannot be opened", where=beside.where
        )
    where = str(vocabulary_file)
    text = files.as_text(files.read_bytes(vocabulary_file), where)
    vocabulary = files.vocabulary_of(parse_json(text, where), where)
    return _side(source_file, vocabulary, beside, target=_side(target_file, vocabulary, beside))


def _side(file: Path, vocabulary: dict[str, int], beside: Beside, target: Opened | None = None) -> Opened:
    """The tokenizer that cuts by one of the two models."""
    where = str(file)
    model = sentencepiece.parse(files.read_bytes(file), where)
    if model.type != sentencepiece.UNIGRAM or model.byte_fallback:
        raise InputError("is not a unigram model without bytes, as translators have", where=where)
    vocabulary = dict(vocabulary)
    codes = [name for name in vocabulary if name.startswith(">>") and name.endswith("<<")]
    given = [piece.text for piece in model.of_type(sentencepiece.USER_DEFINED)]
    for name in given:
        if name not in vocabulary:
            raise InputError(f"the piece {shown(name)} that its users defined has no id", where=where)
    beside = Beside(
        beside.where,
        beside.settings,
        beside.family,
        beside.roles,
        [*map(Token, codes), *(Token(name, special=False) for name in given), *beside.added],
    )
    names, added = surroundings.complete(beside, vocabulary, ROLES)
    if "unk_token" not in names:
        raise DamagedError(f"has no token {ROLES['unk_token']}", where=str(file.with_name(FILES[2])))
    scores = sentencepiece.scores_of(model, added)
    rules = sentencepiece.text_rules(model) | {
        "unlisted": [[piece, score] for piece, score in scores.items() if piece not in vocabulary]
    }
    content = definition(
        unigram(sentencepiece.scored(vocabulary, scores, where), unknown_id=vocabulary[names["unk_token"]]),
        post_processor=surroundings.start_and_end(beside, names, vocabulary, start=False, end=True),
        added_tokens=added,
        **sentencepiece.text_parts(model),
    )
    return surroundings.opened(content, surroundings.settings_of(beside, names, sentencepiece=rules), where, target)
