"""Tokenizers in the metadata of GGUF files, in and out.

llama.cpp has four that are of use here, and `tokenizer.ggml.model` names one: "gpt2" joins pairs of bytes, "llama" is
SentencePiece's way of joining pieces by score, "t5" its unigram, "bert" is WordPiece. What it does not have is refused
when it is to be written; what it does almost alike is written and said.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rhapsode.base.errors import DamagedError, InputError, MismatchError, RhapsodeError, nearest
from rhapsode.exchange.gguf_file import Metadata, Value
from rhapsode.tokenizer.definition import Part, as_text, byte_pairs, definition, frame, word_pieces
from rhapsode.tokenizer.encoders import byte_pair_ranks, merges_of
from rhapsode.tokenizer.pieces import (
    SPACE,
    Pieces,
    PieceType,
    added_tokens,
    definition_of,
    is_byte,
    pieces_of,
    unused_name,
    vocabulary_end,
)
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_LEVEL,
    PATTERNS,
    cut_alike,
    pre_tokenizer_settings,
    split_settings,
)
from rhapsode.tokenizer.tokenizer import OTHER_RULES, PROBE, TURN_END, Tokenizer

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES, SCORES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
SPACE_PREFIX, EXTRA_SPACES = "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"
LOWERCASE, STRIP_ACCENTS = "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents"
TEMPLATE = "tokenizer.chat_template"
ADD_START, ADD_END = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
TURN_END_ID = "tokenizer.ggml.eot_token_id"

# Which token of a tokenizer_config.json each key gives the id of ("seperator" is how the format spells it).
ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}

# The ids that llama.cpp assumes where a key is missing. For "gpt2" it assumes 11 for both ends, which nobody means.
DEFAULT_IDS = {
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
    "t5": {"eos_token": 1, "unk_token": 2, "pad_token": 0},
    "bert": {"bos_token": 101, "unk_token": 100, "sep_token": 102, "pad_token": 0, "mask_token": 103},
    "gpt2": {},
}

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# How byte-level models cut text before they join pairs, as the tokenizer.json files of their publishers say it.
CUTS: dict[str, Part] = {name: pre_tokenizer_settings(name) for name in PATTERNS} | {
    "starcoder": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, pre_tokenizer_settings("gpt-2")],
    },
    "falcon": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            pre_tokenizer_settings("gpt-2"),
            {"type": "Digits", "individual_digits": False},
            split_settings("[0-9][0-9][0-9]"),
        ],
    },
    "tekken": {"type": "Sequence", "pretokenizers": [split_settings(TEKKEN), BYTE_LEVEL]},
}


class Pre(NamedTuple):
    """What a name in `tokenizer.ggml.pre` means.

    Args:
        cut: a name in `CUTS`.
        whole: whether a piece that is in the vocabulary as a whole is taken so, whatever the merges say.
        start: whether the start token goes before a text where the metadata does not say.
    """

    cut: str
    whole: bool = False
    start: bool = False


PRE_TOKENIZERS = {
    **{name: Pre("gpt-2") for name in ("gpt-2", "mpt", "olmo", "phi-2", "roberta-bpe")},
    **{name: Pre("llama-bpe", whole=True, start=True) for name in ("llama-bpe", "llama3", "llama-v3", "falcon3")},
    **{name: Pre("llama-bpe") for name in ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")},
    **{name: Pre("qwen2") for name in ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez")},
    **{name: Pre("starcoder") for name in ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone")},
    "falcon": Pre("falcon"),
    "tekken": Pre("tekken", whole=True, start=True),
}


def tokenizer_from_gguf(metadata: Metadata) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Tokens of type "unused" at the end, which fill up an embedding, are left out.

    Raises:
        InputError: it is of a kind, or cuts text in a way, that is not known here.
        DamagedError: what describes it is incomplete or contradicts itself.
    """
    model = metadata.text(MODEL)
    readers: dict[str, Callable[[Metadata, list[str], list[int]], Part]] = {
        "gpt2": _read_byte_pairs,
        "llama": _read_pieces,
        "t5": _read_pieces,
        "bert": _read_word_pieces,
    }
    if model not in readers:
        raise InputError(
            f"its tokenizer is of the kind {model!r}, which is not known here",
            where=metadata.where,
            todo=nearest(model, readers),
        )
    tokens = metadata.texts(TOKENS)
    types = _types(metadata, len(tokens))
    roles = _roles(metadata, len(tokens))
    if "unk_token" in roles:  # there is one: older files call unused ones so too
        types = [PieceType.UNUSED if type == PieceType.UNKNOWN else type for type in types]
    for role, id in roles.items():
        types[id] = PieceType.UNKNOWN if role == "unk_token" and model != "gpt2" else PieceType.CONTROL
    content = readers[model](metadata, tokens, types)
    names = {token["id"]: token["content"] for token in content["added_tokens"]}
    settings: dict[str, Any] = {role: names[id] for role, id in roles.items()}
    if model == "bert" and "bos_token" in settings:
        settings["cls_token"] = settings["bos_token"]
    content["post_processor"] = _frame(metadata, model, roles, names)
    template = metadata.text(TEMPLATE) if TEMPLATE in metadata else None
    return Tokenizer(as_text(content), settings=settings, chat_template=template, where=metadata.where)


def tokenizer_metadata(tokenizer: Tokenizer, rows: int | None = None) -> tuple[dict[str, Value], list[str]]:
    """What a GGUF file says of a tokenizer, and what llama.cpp will do otherwise than we do, a sentence each.

    Before it is returned it is read back, and must give the same ids.

    Args:
        rows: of the model's embedding, when there may be more than the tokenizer has tokens.

    Raises:
        InputError: llama.cpp has nothing that cuts text like this; the message names the nearest that it has.
        MismatchError: the model has fewer rows than the tokenizer has tokens.
    """
    content, notices = _plainly_said(tokenizer)
    kind = content["model"]["type"]
    byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel"
    if kind == "BPE" and byte_level:
        values = _write_byte_pairs(tokenizer, content)
    elif kind == "WordPiece":
        values = _write_word_pieces(tokenizer, content)
    elif (pieces := pieces_of(content)) is not None and not byte_level:
        values = _write_pieces(tokenizer, content, pieces)
    else:
        kind = f"{tokenizer.kind} on bytes" if byte_level else tokenizer.kind
        raise _refused(tokenizer, f"is of a kind that llama.cpp does not have ({kind})")
    _fill_up(tokenizer, values, rows)
    values |= _special_ids(tokenizer, values[MODEL], notices)
    if tokenizer.chat_template is not None:
        values[TEMPLATE] = tokenizer.chat_template
    _require_same(tokenizer, values)
    return values, notices


# --- in ---


def _types(metadata: Metadata, count: int) -> list[int]:
    if TYPES not in metadata:
        return [PieceType.NORMAL] * count
    types: list[int] = metadata.numbers(TYPES).tolist()
    if len(types) != count:
        raise DamagedError(f"has {count} tokens and {len(types)} types of tokens", where=metadata.where)
    # llama.cpp's 0 is "undefined".
    return [int(type) or PieceType.NORMAL for type in types]


def _roles(metadata: Metadata, count: int) -> dict[str, int]:
    """The id of each special token that the metadata names."""
    found = {role: id for role, id in DEFAULT_IDS[metadata.text(MODEL)].items() if id < count}
    for role, key in ROLES.items():
        if key in metadata:
            found[role] = metadata.integer(key)
            if not 0 <= found[role] < count:
                raise DamagedError(f"{key} is {found[role]}, and there are {count} tokens", where=metadata.where)
    return found


def _frame(metadata: Metadata, model: str, roles: dict[str, int], names: dict[int, str]) -> Part | None:
    """What goes before a text and after it."""
    pre = PRE_TOKENIZERS.get(metadata.text(PRE, "default"), Pre(""))
    add_start = model == "bert" or metadata.flag(ADD_START, model == "llama" or (model == "gpt2" and pre.start))
    add_end = model == "bert" or metadata.flag(ADD_END, model == "t5")
    front = [names[roles["bos_token"]]] if add_start and "bos_token" in roles else []
    end = "sep_token" if model == "bert" else "eos_token"
    back = [names[roles[end]]] if add_end and end in roles else []
    return frame(front, back, {name: id for id, name in names.items()}, typed=model == "bert")


def _read_byte_pairs(metadata: Metadata, tokens: list[str], types: list[int]) -> Part:
    pre = metadata.text(PRE)
    if pre not in PRE_TOKENIZERS:
        raise InputError(
            f"cuts text by the pre-tokeniser {pre!r}, which is not known here",
            where=metadata.where,
            todo=nearest(pre, PRE_TOKENIZERS),
        )
    _require_distinct(metadata, tokens)
    vocabulary = {token: id for id, token in enumerate(tokens[: vocabulary_end(types)])}
    merges = []
    for number, merge in enumerate(metadata.texts(MERGES)):
        cut = merge.find(" ", 1)  # as llama.cpp: the first place may be a space itself
        left, right = merge[: max(cut, 0)], merge[cut + 1 :]
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise DamagedError(f"the merge {number}, {merge[:50]!r}, is not one of its tokens", where=metadata.where)
        merges.append((left, right))
    model = byte_pairs(vocabulary, merges) | {"ignore_merges": PRE_TOKENIZERS[pre].whole}
    return definition(
        model,
        pre_tokenizer=CUTS[PRE_TOKENIZERS[pre].cut],
        decoder=BYTE_LEVEL,
        added_tokens=added_tokens(tokens, types),
    )


def _read_pieces(metadata: Metadata, tokens: list[str], types: list[int]) -> Part:
    joins = metadata.text(MODEL) == "llama"
    scores = metadata.numbers(SCORES).tolist()
    charsmap = b""
    if CHARSMAP in metadata:
        charsmap = metadata.numbers(CHARSMAP).astype(np.uint8).tobytes()
    normal = [score for score, type, token in zip(scores, types, tokens, strict=False) if type == 1 and len(token) > 1]
    if joins and len(normal) > 1 and min(normal) == max(normal):
        raise DamagedError("gives all tokens one score: nothing says in which order to join them", where=metadata.where)
    pieces = Pieces(
        method="bpe" if joins else "unigram",
        texts=tokens,
        scores=scores,
        types=types,
        charsmap=charsmap,
        add_space_prefix=metadata.flag(SPACE_PREFIX, joins),
        remove_extra_spaces=not joins and metadata.flag(EXTRA_SPACES, False),
    )
    return definition_of(pieces, metadata.where)


def _read_word_pieces(metadata: Metadata, tokens: list[str], types: list[int]) -> Part:
    special = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED, PieceType.UNUSED)
    names = [token if type in special else _word_piece(token) for token, type in zip(tokens, types, strict=True)]
    _require_distinct(metadata, names)
    unknown = next((name for name, type in zip(names, types, strict=True) if type == PieceType.UNKNOWN), None)
    if unknown is None:
        raise DamagedError("has no token for unknown words", where=metadata.where)
    lowercase = metadata.flag(LOWERCASE, True)
    return definition(
        word_pieces({name: id for id, name in enumerate(names)}, unknown),
        normalizer=_bert_normalizer(lowercase, metadata.flag(STRIP_ACCENTS, lowercase)),
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        added_tokens=added_tokens(names, types),
    )


def _word_piece(token: str) -> str:
    """WordPiece's name of a token: llama.cpp marks where a word begins, WordPiece where it goes on."""
    if token.startswith("[") and token.endswith("]"):  # as older converters left what looks special
        return token
    return token[1:] if token.startswith(SPACE) and len(token) > 1 else f"##{token}"


def _bert_normalizer(lowercase: bool, strip_accents: bool) -> Part:
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }


def _require_distinct(metadata: Metadata, tokens: Sequence[str]) -> None:
    text, count = Counter(tokens).most_common(1)[0] if tokens else ("", 0)
    if count != 1:
        what = f"has the token {text[:50]!r} {count} times" if count else "has no tokens"
        raise DamagedError(what, where=metadata.where)


# --- out ---


def _plainly_said(tokenizer: Tokenizer) -> tuple[Part, list[str]]:
    """The content of a definition without what llama.cpp does not do, and what that is."""
    content, notices = dict(tokenizer.content), []
    if content.get("normalizer") in ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}):
        content["normalizer"] = None
        notices.append("llama.cpp does not compose characters (NFC): decomposed accents become other tokens there")
    cut = content.get("pre_tokenizer") or {}
    if cut.get("type") == "Metaspace" and not content.get("normalizer") and not cut.get("split", True):
        prefix = [] if cut.get("prepend_scheme") == "never" else [{"type": "Prepend", "prepend": SPACE}]
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        content["normalizer"] = {"type": "Sequence", "normalizers": [*prefix, replace]} if prefix else replace
        content["pre_tokenizer"] = None
        if prefix:
            notices.append("llama.cpp puts a space before texts that begin with one too: they get one more there")
    for token in content.get("added_tokens") or []:
        flags = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
        if flags and not token.get("special"):
            notices.append(f"llama.cpp finds the token {token['content']!r} wherever it stands, without {flags[0]}")
    return content, notices


def _write_byte_pairs(tokenizer: Tokenizer, content: Part) -> dict[str, Value]:
    model = content["model"]
    if content.get("normalizer") or any(model.get(field) for field in OTHER_RULES):
        raise _refused(tokenizer, "changes text before it is cut, or joins pairs by rules that llama.cpp does not have")
    merges = merges_of(model)
    if any(" " in part for pair in merges for part in pair):
        raise _refused(tokenizer, "joins pairs with spaces in them, which GGUF cannot spell")
    tokens, types = _tokens_of(tokenizer, content)
    return {
        MODEL: "gpt2",
        PRE: _pre_tokenizer_name(tokenizer, content, merges),
        TOKENS: tokens,
        TYPES: np.array(types, dtype=np.int32),
        MERGES: [f"{left} {right}" for left, right in merges],
    }


def _pre_tokenizer_name(tokenizer: Tokenizer, content: Part, merges: list[tuple[str, str]]) -> str:
    if not merges:  # bytes: any cut will do
        return "gpt-2"
    cut = content.get("pre_tokenizer")
    names = [name for name, pre in PRE_TOKENIZERS.items() if cut_alike(CUTS[pre.cut], cut)]
    if not names:
        raise _refused(tokenizer, "cuts text into pieces in a way that llama.cpp has no name for")
    model = content["model"]
    wanted = bool(model.get("ignore_merges"))
    if PRE_TOKENIZERS[names[0]].whole != wanted:
        # It makes no difference when every token is what the merges make of its own bytes.
        found = byte_pair_ranks(model["vocab"], merges)
        added = {token["content"] for token in content.get("added_tokens") or []}
        if found is None or len(found[0]) < len(model["vocab"].keys() - added):
            names = [name for name in names if PRE_TOKENIZERS[name].whole == wanted]
    if not names:
        raise _refused(tokenizer, "takes whole pieces against its merges, or does not, other than llama.cpp does")
    return names[0]


def _write_pieces(tokenizer: Tokenizer, content: Part, pieces: Pieces) -> dict[str, Value]:
    model = content["model"]
    joins = pieces.method == "bpe"
    if any(model.get(field) for field in (*OTHER_RULES, "ignore_merges")):
        raise _refused(tokenizer, "joins pieces by rules that llama.cpp does not have")
    if PieceType.UNKNOWN not in pieces.types:
        raise _refused(tokenizer, "has no token for what it does not know")
    if joins:
        if pieces.charsmap or pieces.remove_extra_spaces:
            raise _refused(tokenizer, "changes text before it is cut, which llama.cpp does not do for its kind")
        if sum(map(is_byte, pieces.texts)) != 256:
            raise _refused(tokenizer, "has no tokens for the bytes of what it does not know")
        ours, theirs = merges_of(model), merges_of(definition_of(pieces, tokenizer.where)["model"])
        if set(ours) != set(theirs) or list(map("".join, ours)) != list(map("".join, theirs)):
            raise _refused(tokenizer, "joins pieces by more than the order of their unions")
    elif model.get("byte_fallback"):
        raise _refused(tokenizer, "writes what it does not know as bytes, which llama.cpp does not do for its kind")
    values: dict[str, Value] = {
        MODEL: "llama" if joins else "t5",
        PRE: "default",
        TOKENS: list(pieces.texts),
        SCORES: np.array(pieces.scores, dtype=np.float32),
        TYPES: np.array(pieces.types, dtype=np.int32),
        SPACE_PREFIX: pieces.add_space_prefix,
    }
    if not joins:
        values[EXTRA_SPACES] = pieces.remove_extra_spaces
        if pieces.charsmap:
            values[CHARSMAP] = np.frombuffer(pieces.charsmap, dtype=np.uint8)
    return values


def _write_word_pieces(tokenizer: Tokenizer, content: Part) -> dict[str, Value]:
    normalizer = content.get("normalizer") or {}
    lowercase = bool(normalizer.get("lowercase"))
    accents = normalizer.get("strip_accents")
    strip_accents = lowercase if accents is None else bool(accents)
    if (
        normalizer | {"strip_accents": strip_accents} != _bert_normalizer(lowercase, strip_accents)
        or (content.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer"
        or content["model"].get("continuing_subword_prefix") != "##"
    ):
        raise _refused(tokenizer, "does not cut text in BERT's way, the only one with WordPiece that llama.cpp knows")
    tokens, types = _tokens_of(tokenizer, content)
    plain = (PieceType.NORMAL,)
    return {
        MODEL: "bert",
        PRE: "default",
        TOKENS: [
            (token[2:] if token.startswith("##") else SPACE + token) if type in plain else token
            for token, type in zip(tokens, types, strict=True)
        ],
        TYPES: np.array(types, dtype=np.int32),
        LOWERCASE: lowercase,
        STRIP_ACCENTS: strip_accents,
    }


def _tokens_of(tokenizer: Tokenizer, content: Part) -> tuple[list[str], list[int]]:
    """Every token by id, and its type."""
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    names = {id: name for name, id in content["model"]["vocab"].items()}
    names |= {id: token["content"] for id, token in added.items()}
    tokens, types = [], []
    for id in range(tokenizer.vocabulary_size):
        tokens.append(names.get(id, unused_name(id)))
        if id == tokenizer.unknown_id:
            types.append(PieceType.UNKNOWN)
        elif id in added:
            types.append(PieceType.CONTROL if added[id].get("special") else PieceType.USER_DEFINED)
        else:
            types.append(PieceType.NORMAL if id in names else PieceType.UNUSED)
    return tokens, [int(type) for type in types]


def _fill_up(tokenizer: Tokenizer, values: dict[str, Value], rows: int | None) -> None:
    """Unused tokens for the rest of the embedding: llama.cpp takes its size from the number of tokens."""
    count = len(values[TOKENS])
    missing = 0 if rows is None else rows - count
    if missing < 0:
        raise MismatchError(f"has {count} tokens, and the model only {rows} rows for them", where=tokenizer.where)
    values[TOKENS] += [unused_name(id) for id in range(count, count + missing)]
    values[TYPES] = np.concatenate([values[TYPES], np.full(missing, PieceType.UNUSED, dtype=np.int32)])
    if SCORES in values:
        values[SCORES] = np.concatenate([values[SCORES], np.zeros(missing, dtype=np.float32)])
    if len(set(values[TOKENS])) < len(values[TOKENS]):
        twice: str = Counter(values[TOKENS]).most_common(1)[0][0]
        raise _refused(tokenizer, f"would have the token {twice!r} twice")


def _special_ids(tokenizer: Tokenizer, model: str, notices: list[str]) -> dict[str, Value]:
    """The ids of the special tokens, and which of them go around a text."""
    named = {role: tokenizer.settings.get(role) for role in ROLES}
    if model == "bert":
        named = {"bos_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"} | {
            role: name for role, name in named.items() if name is not None
        }
        named["bos_token"] = tokenizer.settings.get("cls_token") or named["bos_token"]
    ids: dict[str, int | None] = {}
    for role, name in named.items():
        text = name.get("content") if isinstance(name, dict) else name
        ids[role] = tokenizer.token_to_id(text) if isinstance(text, str) else None
    ids["eos_token"], ids["pad_token"] = tokenizer.end_of_text_id, tokenizer.padding_id
    if tokenizer.unknown_id is not None:
        ids["unk_token"] = tokenizer.unknown_id

    front, back = tokenizer.frame()
    end = "sep_token" if model == "bert" else "eos_token"
    for role, around in (("bos_token", front), (end, back)):
        if len(around) == 1:
            ids[role] = around[0]
        if len(around) > 1 or (model == "bert" and not around):
            said = " ".join(map(tokenizer.id_to_token, around)) or "nothing"
            notices.append(f"llama.cpp puts one token where {said} stands before or after a text")
    if model == "gpt2" and ids["bos_token"] is None:
        # Without it llama.cpp takes token 11. What ends a text also stands before the next one.
        ids["bos_token"] = ids["eos_token"]
    values: dict[str, Value] = {ROLES[role]: id for role, id in ids.items() if id is not None}
    values |= {ADD_START: bool(front), ADD_END: bool(back)}
    # Else llama.cpp takes the first that looks like one, by the order of a hash table.
    if TURN_END in tokenizer.special_tokens:
        values[TURN_END_ID] = tokenizer.special_tokens[TURN_END]
    return values


def _require_same(tokenizer: Tokenizer, values: dict[str, Value]) -> None:
    """Check at the door: what was made, read back, must cut text as the tokenizer does."""
    again = tokenizer_from_gguf(Metadata(values, f"the metadata made of {tokenizer.where}"))
    text = unicodedata.normalize("NFC", PROBE)
    if tokenizer.encode(text) != again.encode(text):
        raise RhapsodeError("the tokenizer does not come back from GGUF as it went in", where=tokenizer.where)


def _refused(tokenizer: Tokenizer, why: str) -> InputError:
    nearest_kind = "BERT's WordPiece" if tokenizer.kind == "wordpiece" else "byte-level BPE"
    return InputError(
        f"cannot be written to GGUF: it {why}",
        where=tokenizer.where,
        todo=f"The nearest that llama.cpp has is {nearest_kind}.",
    )
