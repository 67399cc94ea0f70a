"""vocab.txt: WordPiece, one token a line, as of BERT."""

from __future__ import annotations

from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.progress import note
from rhapsode.tokenizer.definition import definition, frame, word_pieces
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files
from rhapsode.tokenizer.formats.beside import Beside, Opened

FILES = ("vocab.txt",)

ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# Families that keep words in a vocab.txt, but cut text in ways of their own.
OTHER_FAMILIES = ("bertjapanese", "bertweet", "phobert", "esm", "prophetnet", "xlmprophetnet", "openaigpt", "ctrl")

UNTYPED_FAMILIES = ("distilbert", "mpnet")  # whose models take no type beside each token


def find(folder: Path) -> Path | None:
    """The vocabulary in `folder`."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def recognise(file: Path, data: bytes) -> bool:
    """Whether `data` are lines among which is BERT's token for unknown words, or `file` has the usual name."""
    return file.name in FILES or b"\n[UNK]" in data or data.startswith(b"[UNK]")


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of a vocabulary; lower-cased unless the settings say otherwise, as transformers does.

    Raises:
        InputError: it belongs to a family that cuts text otherwise.
        DamagedError: it is no such vocabulary.
    """
    where = str(file)
    if beside.family in OTHER_FAMILIES or not beside.flag("do_basic_tokenize", True):
        raise InputError(
            "this vocabulary cuts text into words in a way of its own", where=where, todo="Open its tokenizer.json."
        )
    vocabulary = _vocabulary(files.lines(files.as_text(data, where)), where)
    names, added = surroundings.complete(beside, vocabulary, ROLES)
    if "unk_token" not in names:
        raise DamagedError(
            f"has no token for unknown words ({ROLES['unk_token']})", where=where, todo="Is it a WordPiece vocabulary?"
        )
    lower_case = beside.flag("do_lower_case", True)
    accents = beside.settings.get("strip_accents")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": beside.flag("tokenize_chinese_chars", True),
        "strip_accents": None if accents is None else beside.flag("strip_accents", lower_case),
        "lowercase": lower_case,
    }
    enclosed = "cls_token" in names and "sep_token" in names
    content = definition(
        word_pieces(vocabulary, names["unk_token"]),
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=frame([names["cls_token"]], [names["sep_token"]], vocabulary, typed=True) if enclosed else None,
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        added_tokens=added,
    )
    settings = surroundings.settings_of(beside, names)
    if beside.family not in UNTYPED_FAMILIES:
        settings.setdefault("model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    return surroundings.opened(content, settings, where)


def _vocabulary(lines: list[str], where: str) -> dict[str, int]:
    """The line of each token, from 0; of a token that stands on several, the last, as transformers does."""
    if len(lines) > files.LARGEST_VOCABULARY:
        raise DamagedError(f"has more than {files.LARGEST_VOCABULARY:,} lines", where=where)
    vocabulary = {token: id for id, token in enumerate(lines)}
    if repeated := len(lines) - len(vocabulary):
        note(f"{where}: {repeated:,} tokens stand on more than one line; of each the last counts.")
    return vocabulary
