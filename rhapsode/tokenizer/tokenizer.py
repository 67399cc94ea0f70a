"""Text to token ids and back, from a tokenizer.json of our own or of others.

    rhapsode tokenizer encode runs/mytext/model "Once upon a time"

Text is only ever text here: `encode` turns "<|endoftext|>" into the tokens of its characters, never into the end of a
text. Special tokens are put in by number, or by `encode(..., special=True)` for text that a chat template wrote.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json, write_atomically, write_json
from rhapsode.base.machine import threads
from rhapsode.tokenizer.encoders import BytePairEncoder, ByteEncoder, CharacterEncoder, Ids, byte_pair_ranks, merges_of
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_PAIR_PATTERNS,
    byte_characters,
    has_long_run,
    pre_tokenizer_name,
    safe_cuts,
    word_pre_tokenizer_settings,
)

END_OF_TEXT, PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING, TURN_START, TURN_END)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

DEFINITION_FILE, SETTINGS_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
LARGEST_DEFINITION = 256 * 2**20  # bytes; the largest published ones have 35 MB

# Names that others give to the end of a text and to padding, when no tokenizer_config.json says it.
ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
PADDINGS = (PADDING, "<pad>", "[PAD]", "<|pad|>")

PART = 2**16  # characters encoded at a time: small enough to share among threads, large enough to be worth it
LIBRARY_GROUP = 64  # parts the library holds at once: it keeps some hundred bytes per token
WORTH_PREPARING = 2**16  # characters from which preparing tiktoken (some 0.1 s) pays


# A little of everything that pre-tokenisers treat in their own way.
PROBE = (
    "It's 1984's first day, they'LL say; we'd 3.14159 and 007!\n\n\n  Two  spaces\t\ttabs \r\n"
    "don't... (brackets), <|endoftext|> naïve Größe Ελληνικά русский язык 日本語、中文。 한국어 עברית العربية हिन्दी 🦙🏽‍♀️ e\u0301 "
    "\u00a0\u2003wide\u3000  end \u00b2\u00bd\u2167 def f(x):\n    return x**2 # ok\n\n\t\n "
)


class Encoder(Protocol):
    def encode(self, text: str) -> Ids: ...


class Tokenizer:
    """A tokenizer.json, with what tokenizer_config.json adds to it.

    Args:
        definition: the text of a tokenizer.json.
        settings: the content of its tokenizer_config.json; what it lacks is found in the definition.
        chat_template: the Jinja source that writes a conversation as text.
        where: where the definition comes from, for messages.

    Attributes:
        kind: "character", "word", "byte", "bpe", "unigram", or "wordpiece" (others' only).
        digest: SHA-256 of the definition, as hexadecimal digits.
        special_tokens: id of each special token.
        end_of_text_id, padding_id: None when the definition has no such token; never equal.
        unknown_id: the id of what the vocabulary lacks, None when it lacks nothing.
        vocabulary_size: one more than the highest id.

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
    ) -> None:
        self.definition, self.chat_template, self.where = definition, chat_template, where
        self.digest = hashlib.sha256(definition.encode("utf-8")).hexdigest()
        self._content = _parsed(definition, where)
        self._engine = _engine(definition, where)
        self.kind = _kind(self._content, where)
        added = {token["content"]: token for token in self._content.get("added_tokens") or ()}
        self.special_tokens = {name: int(token["id"]) for name, token in added.items() if token.get("special")}
        self._added_ids = {int(token["id"]) for token in added.values()}
        self._special_ids = frozenset(self.special_tokens.values())
        self.vocabulary_size = max(self._engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.settings = dict(settings or {})
        self.end_of_text_id = self._special_id("eos_token", ENDS)
        padding_id = self._special_id("pad_token", PADDINGS)
        self.padding_id = None if padding_id == self.end_of_text_id else padding_id
        unknown = self._content["model"].get("unk_token")
        if self.kind == "unigram":
            self.unknown_id: int | None = self._content["model"].get("unk_id")
        else:
            self.unknown_id = None if unknown is None else self._engine.token_to_id(unknown)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """The tokenizer in a folder, or in one tokenizer.json file.

        Raises:
            InputError: there is none.
            DamagedError: a file of it is not what it should be.
        """
        path = Path(path)
        file = path / DEFINITION_FILE if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                "there is no tokenizer here" if path.is_dir() else "the file does not exist",
                where=str(file),
                todo="Name a tokenizer.json, or a folder that has one; `rhapsode tokenizer train` makes one.",
            )
        if file.stat().st_size > LARGEST_DEFINITION:
            raise InputError(f"is larger than {LARGEST_DEFINITION // 2**20} MB: not a tokenizer", where=str(file))
        try:
            definition = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedError("is not UTF-8 text", where=str(file)) from None
        settings = read_json(file.with_name(SETTINGS_FILE)) if file.with_name(SETTINGS_FILE).is_file() else {}
        if not isinstance(settings, dict):
            raise DamagedError("is not a JSON object", where=str(file.with_name(SETTINGS_FILE)))
        template_file = file.with_name(TEMPLATE_FILE)
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else None
        if template is None and isinstance(settings.get("chat_template"), str):
            template = settings["chat_template"]
        return cls(definition, settings=settings, chat_template=template, where=str(file))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / DEFINITION_FILE, self.definition)
        write_json(folder / SETTINGS_FILE, self._settings_to_save())
        if self.chat_template is not None:
            write_atomically(folder / TEMPLATE_FILE, self.chat_template)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`. With `special`, the names of special tokens in it become those tokens.

        Raises:
            InputError: the text holds half a character (a lone surrogate).
        """
        if not special or not self.special_tokens:
            return self._ids(text).tolist()
        names = sorted(self.special_tokens, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, names)) + ")", text):
            ids += [self.special_tokens[part]] if part in self.special_tokens else self._ids(part).tolist()
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """The ids of each text, computed on all threads; a text's ids are those of `encode`."""
        texts = list(texts)
        parts = [list(self._parts(text)) for text in texts]
        arrays = iter(self._encode_parts([part for text_parts in parts for part in text_parts]))
        return [np.concatenate([next(arrays) for _ in text_parts]) for text_parts in parts]

    def decode(self, ids: Sequence[int] | Ids, *, skip_special: bool = True) -> str:
        """The text that `ids` stand for, without the special tokens among them unless `skip_special` is false.

        Raises:
            InputError: an id is not in the vocabulary.
        """
        numbers = [int(id) for id in ids]
        self._check(numbers)
        text: str = self._engine.decode(numbers, skip_special_tokens=skip_special)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as it stands in the vocabulary (a space is `Ġ` in a byte-level one)."""
        id: int | None = self._engine.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str:
        """The token as it stands in the vocabulary."""
        self._check([id])
        token: str = self._engine.id_to_token(id)
        return token

    def id_to_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for within a text; for a special token, those of its name."""
        token = self.id_to_token(id)
        if id not in self._added_ids:
            if self._byte_level:
                return bytes(self._byte_of[character] for character in token)
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                return bytes([int(token[3:5], 16)])
            if self.kind == "wordpiece":
                return token.removeprefix("##").encode("utf-8")
            if "▁" in token and not self._joins_plainly:
                return token.replace("▁", " ").encode("utf-8")
        return token.encode("utf-8")

    def unknown_count(self, ids: Sequence[int] | Ids) -> int:
        """How many of `ids` stand for something that the vocabulary lacks."""
        return 0 if self.unknown_id is None else int(np.count_nonzero(np.asarray(ids) == self.unknown_id))

    @property
    def pre_tokenizer(self) -> str | None:
        """The name by which llama.cpp knows how text is cut into pieces, if it does."""
        return pre_tokenizer_name(self._content.get("pre_tokenizer")) if self.kind == "bpe" else None

    # How texts are encoded

    def _ids(self, text: str) -> Ids:
        parts = list(self._parts(text))
        return np.concatenate(self._encode_parts(parts)) if len(parts) > 1 else self._encode_parts(parts)[0]

    def _parts(self, text: str) -> Iterable[str]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds half a character (U+{ord(text[error.start]):04X}) at position {error.start}",
                todo="It was read with the wrong encoding.",
            ) from None
        return safe_cuts(text, PART) if self._may_be_cut else [text]

    def _encode_parts(self, parts: list[str]) -> list[Ids]:
        if self._plain_encoder is not None:
            return [self._plain_encoder.encode(part) for part in parts]
        if sum(map(len, parts)) < WORTH_PREPARING or self._pair_encoder is None:
            return self._by_library(parts)
        # Threads help: tiktoken works outside Python's lock.
        with ThreadPoolExecutor(threads()) as pool:
            return list(pool.map(self._pairs_of, parts))

    def _pairs_of(self, part: str) -> Ids:
        assert self._pair_encoder is not None
        return self._by_library([part])[0] if has_long_run(part) else self._pair_encoder.encode(part)

    def _by_library(self, parts: list[str]) -> list[Ids]:
        arrays: list[Ids] = []
        for start in range(0, len(parts), LIBRARY_GROUP):
            group = self._engine.encode_batch_fast(parts[start : start + LIBRARY_GROUP], add_special_tokens=False)
            arrays += [np.array(encoding.ids, dtype=np.uint32) for encoding in group]
        return arrays

    @cached_property
    def _plain_encoder(self) -> Encoder | None:
        """The encoder of characters or bytes, for our own tokenizers of these kinds."""
        if self._content.get("normalizer") or self._plain_added_tokens:
            return None
        vocabulary = self._content["model"]["vocab"]
        if self.kind == "byte" and all(character in vocabulary for character in byte_characters()):
            return ByteEncoder(vocabulary)
        if self.kind == "character" and self.unknown_id is not None and not self._content["model"].get("fuse_unk"):
            return CharacterEncoder(vocabulary, self.unknown_id)
        return None

    @cached_property
    def _pair_encoder(self) -> Encoder | None:
        """tiktoken, when it is proven to give the ids of the definition."""
        model, name = self._content["model"], self.pre_tokenizer
        changed = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        if name is None or self._content.get("normalizer") or self._plain_added_tokens:
            return None
        if any(model.get(field) for field in changed):
            return None
        found = byte_pair_ranks(model["vocab"], merges_of(model))
        if found is None or (model.get("ignore_merges") and len(found[0]) < len(model["vocab"])):
            return None
        encoder = BytePairEncoder(BYTE_PAIR_PATTERNS[name], *found)
        return encoder if np.array_equal(encoder.encode(PROBE), self._by_library([PROBE])[0]) else None

    @cached_property
    def _may_be_cut(self) -> bool:
        """Whether `safe_cuts` is safe: for all that is trained here, and others' of the same make."""
        if self._content.get("normalizer") or self._plain_added_tokens:
            return False
        if self.kind in ("character", "byte"):
            return True
        if self.kind == "word":
            return self._content.get("pre_tokenizer") == word_pre_tokenizer_settings()
        return pre_tokenizer_name(self._content.get("pre_tokenizer")) is not None

    @cached_property
    def _plain_added_tokens(self) -> bool:
        """Whether tokens that are not special are searched for in the text before it is cut."""
        return len(self._added_ids) > len(self.special_tokens)

    # What the tokens are

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        return {character: byte for byte, character in enumerate(byte_characters())}

    @cached_property
    def _byte_level(self) -> bool:
        return (self._content.get("decoder") or {}).get("type") == "ByteLevel"

    @cached_property
    def _joins_plainly(self) -> bool:
        """Whether the text of several tokens is nothing but their bytes, one after another."""
        return self._byte_level or (self._content.get("decoder") or {}).get("type") == "Fuse"

    def _special_id(self, field: str, names: Sequence[str]) -> int | None:
        """The id of the special token that the settings name in `field`, else of the first of `names` there is."""
        named = self.settings.get(field)
        if isinstance(named, dict):  # older files spell the token out
            named = named.get("content")
        if isinstance(named, str):
            return self.token_to_id(named)
        return next((self.special_tokens[name] for name in names if name in self.special_tokens), None)

    def _settings_to_save(self) -> dict[str, Any]:
        settings = {key: value for key, value in self.settings.items() if key not in ("auto_map", "chat_template")}
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        settings.setdefault("clean_up_tokenization_spaces", False)
        for field, id in (("eos_token", self.end_of_text_id), ("pad_token", self.padding_id)):
            if id is not None:
                settings.setdefault(field, self.id_to_token(id))
        settings["rhapsode"] = {"kind": self.kind, "pre_tokenizer": self.pre_tokenizer}
        return settings

    def _check(self, ids: Sequence[int]) -> None:
        for id in ids:
            if not 0 <= id < self.vocabulary_size or self._engine.id_to_token(id) is None:
                raise InputError(
                    f"there is no token {id}",
                    where=self.where,
                    todo=f"Its vocabulary has the ids 0 to {self.vocabulary_size - 1}.",
                )


class StreamDecoder:
    """Tokens in one by one, whole characters out: a character whose bytes span tokens waits for its last one."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace") if tokenizer._joins_plainly else None
        self._stream = DecodeStream(skip_special_tokens=skip_special)

    def push(self, id: int) -> str:
        """The characters that `id` completes; empty when it completes none."""
        if self._bytes is None:
            self._tokenizer._check([id])
            return self._stream.step(self._tokenizer._engine, id) or ""
        if self._skip_special and id in self._tokenizer._special_ids:
            return ""
        return self._bytes.decode(self._tokenizer.id_to_bytes(id))

    def flush(self) -> str:
        """What is left at the end: a broken character as the replacement character."""
        return self._bytes.decode(b"", final=True) if self._bytes is not None else ""


def _parsed(definition: str, where: str) -> dict[str, Any]:
    """The JSON of a tokenizer.json, as far as this file reads it."""
    try:
        content = json.loads(definition)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"{where}:{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else where
        raise DamagedError("is not JSON", where=place, todo="Is it a tokenizer.json?") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise DamagedError("has no `model`", where=where, todo="Is it a tokenizer.json?")
    model.setdefault("type", "BPE" if "merges" in model else "Unigram" if "unk_id" in model else None)
    return content


def _engine(definition: str, where: str) -> Any:
    """The `tokenizers` object of a definition, with text kept from becoming special tokens."""
    from tokenizers import Tokenizer as Library

    try:
        engine = Library.from_str(definition)
    except Exception as error:
        raise DamagedError(f"is not a tokenizer ({error})", where=where) from None
    engine.encode_special_tokens = True
    engine.no_truncation()
    engine.no_padding()
    return engine


def _kind(content: dict[str, Any], where: str) -> str:
    model = content["model"]
    kinds = {"Unigram": "unigram", "WordLevel": "word", "WordPiece": "wordpiece", "BPE": "bpe"}
    if model["type"] not in kinds:
        raise DamagedError(f"has a model of type {model['type']!r}", where=where, todo=f"Known are {', '.join(kinds)}.")
    if model["type"] == "BPE" and not model["merges"]:
        if (content.get("decoder") or {}).get("type") == "ByteLevel":
            return "byte"
        if not content.get("pre_tokenizer") and not model.get("byte_fallback"):
            return "character"
    return kinds[model["type"]]
