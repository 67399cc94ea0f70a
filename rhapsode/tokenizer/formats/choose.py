"""Which of the forms a folder or a file is, and its tokenizer.json."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from rhapsode.base.errors import DamagedError
from rhapsode.tokenizer.formats import byte_pairs, clip, marian, sentencepiece, tiktoken, wordpiece
from rhapsode.tokenizer.formats.beside import Opened, read_beside

# In the order in which a folder is searched. Marian's comes first: it has a vocab.json and models as others have.
FORMS: tuple[ModuleType, ...] = (marian, clip, byte_pairs, wordpiece, sentencepiece, tiktoken)

# A file alone is known by its content: the forms with a clear mark come before lines of any words.
BY_CONTENT: tuple[ModuleType, ...] = (marian, sentencepiece, tiktoken, clip, byte_pairs, wordpiece)


def find(folder: Path) -> Path | None:
    """The file of one of the forms in `folder`, None when there is none."""
    return next((file for form in FORMS if (file := form.find(folder)) is not None), None)


def read(file: Path, data: bytes) -> Opened:
    """The tokenizer in `file`, whose content is `data`, by what stands beside it.

    Raises:
        InputError: it cannot be opened.
        DamagedError: it is of none of the forms, or not what its form should be.
    """
    form = next((form for form in BY_CONTENT if form.recognise(file, data)), None)
    if form is None:
        raise DamagedError(
            "is no tokenizer that can be opened",
            where=str(file),
            todo="It may be a tokenizer.json, vocab.json with merges.txt, a WordPiece vocab.txt, a SentencePiece "
            ".model, a rank file of tiktoken, or source.spm with target.spm and vocab.json.",
        )
    opened: Opened = form.read(file, data, read_beside(file.parent))
    return opened


def is_definition(data: bytes) -> bool:
    """Whether `data` are JSON that may be a tokenizer.json, and not a vocabulary alone."""
    return data.lstrip()[:1] == b"{" and re.search(rb'"model"\s*:\s*{', data) is not None
