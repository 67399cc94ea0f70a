"""Text to token ids and back, from a tokenizer.json of our own or of others.

    rhapsode tokenizer encode runs/mytext/model "Once upon a time"

Text is only ever text here: `encode` turns "<|endoftext|>" into the tokens of its characters, never into the end of a
text. Special tokens are put in by number, or by `encode(..., special=True)` for text that a chat template wrote.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import parse_json, write_atomically, write_json
from rhapsode.base.machine import threads
from rhapsode.tokenizer import sentencepiece
from rhapsode.tokenizer.encoders import ByteEncoder, BytePairEncoder, CharacterEncoder, Ids, byte_pair_ranks, merges_of
from rhapsode.tokenizer.formats import choose, files
from rhapsode.tokenizer.formats.beside import Opened, read_object
from rhapsode.tokenizer.formats.files import LARGEST_VOCABULARY
from rhapsode.tokenizer.pre_tokenizers import (
    PATTERNS,
    WORD_PATTERN,
    byte_characters,
    cuts_into_bytes,
    has_long_run,
    pre_tokenizer_name,
    safe_parts,
    split_settings,
)
from rhapsode.tokenizer.sample import require_whole_characters
from rhapsode.tokenizer.soundness import require_sound

END_OF_TEXT, PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>"
MASK = "<|mask|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, TURN_START, TURN_END)


def span_token(number: int) -> str:
    """The token that stands for the span of this number, where spans of a text are cut out."""
    return f"<|span_{number}|>"


UNKNOWN = "\N{REPLACEMENT CHARACTER}"

DEFINITION_FILE, SETTINGS_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
TARGET_FOLDER = "target"

# Names that others give to the end of a text and to padding, when no tokenizer_config.json says it.
ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
PADDINGS = (PADDING, "<pad>", "[PAD]", "<|pad|>")
MASKS = (MASK, "[MASK]", "<mask>")

# What makes a model join pairs otherwise than by their ranks alone.
OTHER_RULES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")

LIBRARY_GROUP = 64  # parts the library holds at once: it keeps some hundred bytes per token
WORTH_PREPARING = 100  # characters of text for each entry of the vocabulary, from which preparing tiktoken pays

# A little of everything that pre-tokenisers treat in their own way.
PROBE = (
    "It's 1984's first day, they'LL say; we'd 3.14159 and 007!\n\n\n  Two  spaces\t\ttabs \r\n"
    "don't... (brackets), <|endoftext|> naïve Größe Ελληνικά русский язык "
    "日本語、中文。 한국어 עברית العربية हिन्दी 🦙🏽‍♀️ e\u0301 "
    "\u00a0\u2003wide\u3000  end \u00b2\u00bd\u2167 def f(x):\n    return x**2 # ok\n\n\t\n "
)


class Encoder(Protocol):
    """What turns a part of a text into ids, (tokens,)."""

    def encode(self, text: str) -> Ids: ...


class Tokenizer:
    """A tokenizer.json, with what tokenizer_config.json adds to it.

    Tokenizers in other files are opened by `load`, which makes a tokenizer.json of them (`rhapsode.tokenizer.formats`).

    Args:
        definition: the text of a tokenizer.json.
        settings: the content of its tokenizer_config.json; what it lacks is found in the definition.
        chat_template: the Jinja source that writes a conversation as text.
        where: where the definition comes from, for messages.
        target: the tokenizer of the texts that the model writes, when it is another than that of those it reads.

    Attributes:
        content: the definition as JSON.
        kind: "character", "word", "byte", "bpe", "unigram", or "wordpiece" (others' only).
        digest: SHA-256 of the definition, as hexadecimal digits.
        vocabulary_size: one more than the highest id.
        special_tokens: the id of each special token.
        beginning_of_text_id: the token named as the beginning of a text, None when none is.
        end_of_text_id, padding_id: None when the definition has no such token; never equal.
        unknown_id: the id of what the vocabulary lacks, None when it lacks nothing.
        mask_id: the id that stands for a hidden token, None when there is none.
        frame: the ids that belong before and after a text; `encode` never adds them.
        pre_tokenizer: the name by which llama.cpp knows how text is cut into pieces, None when it knows none.

    Raises:
        DamagedError: the definition is not one.
    """

    def __init__(
        self,
        definition: str,
        *,
        settings: dict[str, Any] | None = None,
        chat_template: str | None = None,
        where: str = DEFINITION_FILE,
        target: Tokenizer | None = None,
    ) -> None:
        self.definition, self.where, self.target = definition, where, target
        self.settings = dict(settings or {})
        named = self.settings.get("chat_template")
        self.chat_template = named if chat_template is None and isinstance(named, str) else chat_template
        self.digest = hashlib.sha256(definition.encode("utf-8")).hexdigest()
        self.content = _parsed(definition, where)
        require_sound(self.content, where)
        self._library = _library(definition, where)
        own = self.settings.get("rhapsode")
        rules = own.get("sentencepiece") if isinstance(own, dict) else None
        self._sentencepiece = None if rules is None else sentencepiece.encoder_of(self.content, rules, where)
        self.kind = _kind(self.content)
        self.pre_tokenizer = pre_tokenizer_name(self.content.get("pre_tokenizer"))

        self._known_ids = frozenset(self._library.get_vocab(with_added_tokens=True).values())
        self.vocabulary_size = max(self._known_ids, default=-1) + 1
        if self.vocabulary_size > LARGEST_VOCABULARY:
            raise DamagedError(f"has the id {self.vocabulary_size - 1:,}, which no tokenizer has", where=where)
        added = self._library.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self.special_tokens = {token.content: id for id, token in sorted(added.items()) if token.special}
        self._special_ids = frozenset(self.special_tokens.values())

        self.beginning_of_text_id = self._special_id("bos_token", ())
        self.end_of_text_id = self._special_id("eos_token", ENDS)
        padding_id = self._special_id("pad_token", PADDINGS)
        self.padding_id = None if padding_id == self.end_of_text_id else padding_id
        self.mask_id = self._special_id("mask_token", MASKS)
        model = self.content["model"]
        self.unknown_id: int | None = model.get("unk_id")
        if model.get("unk_token") is not None:
            self.unknown_id = self.token_to_id(model["unk_token"])

        decoder = (self.content.get("decoder") or {}).get("type")
        self._byte_level = decoder == "ByteLevel"
        self._joins_plainly = decoder in ("ByteLevel", "Fuse")  # a text is its tokens' bytes, one after another
        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        # Others' files may search the text for tokens, or change it, before it is cut: only the library does that.
        self._cuts_first = not self.content.get("normalizer") and self._added_ids == self._special_ids
        self._joins_by_rank = not any(model.get(field) for field in OTHER_RULES)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """The tokenizer in a folder, or in one file, of any of the forms in which tokenizers are published.

        A folder is searched for tokenizer.json, source.spm with target.spm and vocab.json, vocab.json with merges.txt
        (encoder.json with vocab.bpe), vocab.txt, spiece.model, tokenizer.model, sentencepiece.bpe.model, and
        *.tiktoken, in this order. A file may have any name: its content tells what it is.

        Raises:
            InputError: there is none, or it has rules that cannot be followed.
            DamagedError: a file of it is not what it should be.
        """
        path = Path(path)
        file = path / DEFINITION_FILE if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            file = choose.find(path) or file
        if not file.is_file():
            raise InputError(
                "there is no tokenizer here" if path.is_dir() else "the file does not exist",
                where=str(file),
                todo="Name a file or folder that has one; `rhapsode tokenizer train` makes one.",
            )
        data = files.read_bytes(file)
        if file.name != DEFINITION_FILE and not choose.is_definition(data):
            return cls._opened(choose.read(file, data), _template_beside(file))
        target_file = file.with_name(TARGET_FOLDER) / DEFINITION_FILE
        target = None
        if file.name == DEFINITION_FILE and target_file.is_file():
            target = cls._defined(target_file, files.read_bytes(target_file))
        return cls._defined(file, data, target)

    @classmethod
    def _defined(cls, file: Path, data: bytes, target: Tokenizer | None = None) -> Tokenizer:
        """The tokenizer of a tokenizer.json, by what stands beside it."""
        settings, template = read_object(file.with_name(SETTINGS_FILE)), _template_beside(file)
        definition = files.as_text(data, str(file))
        return cls(definition, settings=settings, chat_template=template, where=str(file), target=target)

    @classmethod
    def _opened(cls, opened: Opened, template: str | None = None) -> Tokenizer:
        """The tokenizer made of other files than a tokenizer.json."""
        target = cls._opened(opened.target) if opened.target is not None else None
        return cls(
            opened.definition, settings=opened.settings, chat_template=template, where=opened.where, target=target
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja into `folder`.

        The tokenizer of the texts that the model writes goes into its folder `target`, if it is another.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / DEFINITION_FILE, self.definition)
        write_json(folder / SETTINGS_FILE, self._settings_to_save())
        if self.chat_template is not None:
            write_atomically(folder / TEMPLATE_FILE, self.chat_template)
        if self.target is not None:
            self.target.save(folder / TARGET_FOLDER)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`. With `special`, the names of special tokens in it become those tokens.

        Raises:
            InputError: the text holds half a character (a lone surrogate).
        """
        if not special or not self.special_tokens:
            plain: list[int] = self.encode_batch([text])[0].tolist()
            return plain
        return self.encode_apart([text])

    def encode_apart(self, texts: Sequence[str]) -> list[int]:
        """The ids of texts one after another, each encoded alone; names of special tokens in them become those."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "(?!)")
        parts = [part for text in texts for part in pattern.split(text) if part]
        # The same few texts stand between the names, where there are many.
        plain = list(dict.fromkeys(part for part in parts if part not in self.special_tokens))
        encoded = {part: ids.tolist() for part, ids in zip(plain, self.encode_batch(plain), strict=True)}
        encoded |= {name: [id] for name, id in self.special_tokens.items()}
        return [id for part in parts for id in encoded[part]]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, as `encode` gives them, computed on all threads."""
        parts = [list(self.parts([text])) for text in texts]
        arrays = iter(self.encode_parts([part for text_parts in parts for part in text_parts]))
        return [np.concatenate([next(arrays) for _ in text_parts]) for text_parts in parts]

    def parts(self, pieces: Iterable[str]) -> Iterable[str]:
        """One document, given in pieces, in parts whose ids one after another are the ids of the whole."""
        return safe_parts(pieces) if self._may_be_cut else ["".join(pieces)]

    def encode_parts(self, parts: Sequence[str]) -> list[Ids]:
        """The ids of each part, encoded alone, on all threads."""
        for part in parts:
            require_whole_characters(part)
        if (alone := self._sentencepiece or self._table_encoder) is not None:
            return [alone.encode(part) for part in parts]
        prepared = "_pair_encoder" in vars(self) or sum(map(len, parts)) >= WORTH_PREPARING * self.vocabulary_size
        if not prepared or self._pair_encoder is None:
            return [self._as_text(ids) for ids in self._by_library(parts)]
        with ThreadPoolExecutor(threads()) as pool:  # tiktoken works outside Python's lock
            size = 1 + len(parts) // (8 * threads())  # a task costs more than a short part
            some = (parts[start : start + size] for start in range(0, len(parts), size))
            return [ids for each in pool.map(lambda some: list(map(self._by_pairs, some)), some) for ids in each]

    def prepare(self) -> None:
        """Make the fast encoder now, whatever amount of text comes: some 0.1 s for 8,000 tokens."""
        _ = self._pair_encoder

    def decode(self, ids: Sequence[int] | Ids, *, skip_special: bool = True) -> str:
        """The text that `ids` stand for, without the special tokens among them unless `skip_special` is false.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        numbers = [int(id) for id in ids]
        self._require(numbers)
        with _at_work(self.where):
            text: str = self._library.decode(numbers, skip_special_tokens=skip_special)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as it stands in the vocabulary (a space is `Ġ` in a byte-level one)."""
        id: int | None = self._library.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str:
        """The token as it stands in the vocabulary."""
        self._require([id])
        token: str = self._library.id_to_token(id)
        return token

    def id_to_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for within a text; for a special token, those of its name."""
        token = self.id_to_token(id)
        if id in self._added_ids:
            return token.encode("utf-8")
        if self._byte_level and all(character in self._byte_of for character in token):
            return bytes(self._byte_of[character] for character in token)
        if not self._joins_plainly:  # others' kinds: WordPiece, and SentencePiece with its bytes as <0x0A>
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                return bytes([int(token[3:5], 16)])
            token = token.removeprefix("##") if self.kind == "wordpiece" else token.replace("▁", " ")
        return token.encode("utf-8")

    def unknown_count(self, ids: Sequence[int] | Ids) -> int:
        """How many of `ids` stand for something that the vocabulary lacks."""
        return 0 if self.unknown_id is None else int(np.count_nonzero(np.asarray(ids) == self.unknown_id))

    def _by_library(self, parts: Sequence[str]) -> list[Ids]:
        arrays: list[Ids] = []
        for start in range(0, len(parts), LIBRARY_GROUP):
            with _at_work(self.where):  # it fails when a piece is unknown and there is no token for that
                group = self._library.encode_batch_fast(parts[start : start + LIBRARY_GROUP], add_special_tokens=False)
            arrays += [np.array(encoding.ids, dtype=np.uint32) for encoding in group]
        return arrays

    def _by_pairs(self, part: str) -> Ids:
        assert self._pair_encoder is not None
        return self._by_library([part])[0] if has_long_run(part) else self._pair_encoder.encode(part)

    def _as_text(self, ids: Ids) -> Ids:
        """`ids` with no special token among them: a word that is spelt like one is an unknown word."""
        spelt = np.isin(ids, self._spelt_special_ids)
        if not spelt.any():
            return ids
        if self.unknown_id is None:
            name = self.id_to_token(int(ids[spelt][0]))
            raise InputError(f"the text holds {name!r}, which this tokenizer cannot write as text", where=self.where)
        return np.where(spelt, np.uint32(self.unknown_id), ids)

    @cached_property
    def _spelt_special_ids(self) -> list[int]:
        """Special tokens that the model's vocabulary has too, as others' files may: plain text could spell them."""
        vocabulary = self.content["model"]["vocab"]
        names = vocabulary if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}
        return [id for name, id in self.special_tokens.items() if name in names and id != self.unknown_id]

    @cached_property
    def _table_encoder(self) -> Encoder | None:
        """The encoder of characters or bytes, when there is no more to it than a table."""
        vocabulary = self.content["model"]["vocab"]
        if not self._may_be_cut or self._spelt_special_ids:
            return None
        if self.kind == "byte" and all(character in vocabulary for character in byte_characters()):
            return ByteEncoder(vocabulary)
        if self.kind == "character" and self.unknown_id is not None and not self.content["model"].get("fuse_unk"):
            return CharacterEncoder(vocabulary, self.unknown_id)
        return None

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that belong before and after a text, as [CLS] and [SEP] for BERT; `encode` never adds them.

        `add_bos_token` and `add_eos_token` of the settings say it, where they stand; else the definition does.
        """
        said = [self.settings.get(name) for name in ("add_bos_token", "add_eos_token")]
        if any(isinstance(flag, bool) for flag in said):
            ids = (self.beginning_of_text_id, self.end_of_text_id)
            front, back = ([id] if flag is True and id is not None else [] for flag, id in zip(said, ids, strict=True))
            return front, back
        for probe in PROBE.split():
            with _at_work(self.where):
                plain = self._library.encode(probe, add_special_tokens=False)
                framed = self._library.encode(probe, add_special_tokens=True)
            if plain.ids:
                mask = framed.special_tokens_mask
                first = mask.index(0) if 0 in mask else 0
                return framed.ids[:first], framed.ids[first + len(plain.ids) :]
        return [], []

    @cached_property
    def _pair_encoder(self) -> Encoder | None:
        """tiktoken, when it is proven to give the ids of the definition."""
        model = self.content["model"]
        if self.kind != "bpe" or self.pre_tokenizer is None or not self._cuts_first or not self._joins_by_rank:
            return None
        found = byte_pair_ranks(model["vocab"], merges_of(model))
        if found is None or not self._special_ids.isdisjoint(found[1].tolist()):
            return None
        if model.get("ignore_merges") and len(found[0]) < len(model["vocab"]):
            return None
        encoder = BytePairEncoder(PATTERNS[self.pre_tokenizer], *found)
        return encoder if np.array_equal(encoder.encode(PROBE), self._by_library([PROBE])[0]) else None

    @cached_property
    def _may_be_cut(self) -> bool:
        """Whether `safe_parts` is safe: for all that is trained here, and others' of the same make."""
        if self.kind in ("character", "byte"):
            return self._cuts_first and self._joins_by_rank
        by_word = self.content.get("pre_tokenizer") == split_settings(WORD_PATTERN)
        return self._cuts_first and (by_word or self.pre_tokenizer is not None)

    def _special_id(self, field: str, names: Sequence[str]) -> int | None:
        """The id of the special token that the settings name in `field`, else of the first of `names` there is."""
        named = self.settings.get(field)
        if isinstance(named, dict):  # older files spell the token out
            named = named.get("content")
        if isinstance(named, str):
            return self.token_to_id(named)
        return next((self.special_tokens[name] for name in names if name in self.special_tokens), None)

    def _settings_to_save(self) -> dict[str, Any]:
        """The tokenizer_config.json, without what names code."""
        left_out = {"auto_map"} | ({"chat_template"} if self.chat_template is not None else set())
        settings = {key: value for key, value in self.settings.items() if key not in left_out}
        added: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for field, id in (("eos_token", self.end_of_text_id), ("pad_token", self.padding_id)):
            if id is not None:
                added[field] = self.id_to_token(id)
        recorded = settings.get("rhapsode")
        own = {"kind": self.kind, "pre_tokenizer": self.pre_tokenizer}
        return added | settings | {"rhapsode": own | recorded if isinstance(recorded, dict) else own}

    def _require(self, ids: Sequence[int]) -> None:
        """Refuse ids that are no tokens."""
        for id in ids:
            if id not in self._known_ids:
                raise InputError(
                    f"there is no token {id}",
                    where=self.where,
                    todo=f"The ids go from 0 to {self.vocabulary_size - 1}.",
                )


class StreamDecoder:
    """Tokens in one by one, whole characters out: a character whose bytes span tokens waits for its last one.

    What comes out, with `flush` at the end, is what `Tokenizer.decode` gives for all the tokens at once; only kinds
    that space words by what follows (WordPiece) may differ in a space.

    Args:
        shown: special tokens whose names come out all the same.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, shown: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special_ids.difference(shown) if skip_special else frozenset()
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []  # of kinds whose tokens are not simply joined
        self._written = ""

    def push(self, id: int) -> str:
        """The characters that `id` completes; empty when it completes none."""
        if id in self._skipped:
            return ""
        if self._tokenizer._joins_plainly:
            return self._bytes.decode(self._tokenizer.id_to_bytes(id))
        self._ids.append(id)
        return self._beyond_written(self._tokenizer.decode(self._ids, skip_special=False).rstrip(UNKNOWN))

    def flush(self) -> str:
        """What is left at the end: an unfinished character as the replacement character."""
        if self._tokenizer._joins_plainly:
            return self._bytes.decode(b"", final=True)
        return self._beyond_written(self._tokenizer.decode(self._ids, skip_special=False))

    def fork(self) -> StreamDecoder:
        """One for the same tokens so far, to which others then come."""
        other = copy(self)
        other._bytes, other._ids = codecs.getincrementaldecoder("utf-8")(errors="replace"), list(self._ids)
        other._bytes.setstate(self._bytes.getstate())
        return other

    def _beyond_written(self, text: str) -> str:
        new = text[len(self._written) :]
        self._written += new
        return new


def _template_beside(file: Path) -> str | None:
    """The chat template in the folder of `file`, if there is one."""
    template = file.with_name(TEMPLATE_FILE)
    return files.as_text(files.read_bytes(template), str(template)) if template.is_file() else None


def _parsed(definition: str, where: str) -> dict[str, Any]:
    """The JSON of a tokenizer.json, as far as this file reads it."""
    content: Any = parse_json(definition, where)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise DamagedError("has no `model`", where=where, todo="Is it a tokenizer.json?")
    parsed: dict[str, Any] = content
    if "type" not in model:  # in older files it follows from the fields
        fields = {"merges": "BPE", "unk_id": "Unigram", "max_input_chars_per_word": "WordPiece"}
        model["type"] = next((kind for field, kind in fields.items() if field in model), "WordLevel")
    return parsed


def library_from(definition: str) -> Any:
    """The `tokenizers` object of a definition, on the threads this process may use unless the environment says."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads()))  # read once, when the library first works
    from tokenizers import Tokenizer as Library

    return Library.from_str(definition)


def _library(definition: str, where: str) -> Any:
    """The `tokenizers` object of a definition, with text kept from becoming special tokens."""
    with _at_work(where, "is not a tokenizer", DamagedError):
        library = library_from(definition)
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    return library


@contextmanager
def _at_work(where: str, what: str = "the tokenizer fails", kind: type[InputError] = InputError) -> Iterator[None]:
    """What the library raises as one of our errors. Where it panics, what it raises is no `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())
        raise kind(f"{what} ({reason if len(reason) <= 200 else reason[:197] + '...'})", where=where) from None


def _kind(content: dict[str, Any]) -> str:
    """The kind of a definition that the library has accepted."""
    model, decoder = content["model"], (content.get("decoder") or {}).get("type")
    if model["type"] == "BPE" and not model["merges"]:  # pairs without any merge leave single characters or bytes
        if decoder == "ByteLevel" and cuts_into_bytes(content.get("pre_tokenizer")):
            return "byte"
        if decoder == "Fuse" and not content.get("pre_tokenizer") and not model.get("byte_fallback"):
            return "character"
    return {"Unigram": "unigram", "WordLevel": "word", "WordPiece": "wordpiece"}.get(model["type"], "bpe")
