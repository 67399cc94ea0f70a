"""Tokenizers in the metadata of GGUF files, in and out.

llama.cpp has four that are of use here, and `tokenizer.ggml.model` names one: "gpt2" joins pairs of bytes, "llama" is
SentencePiece's way of joining pieces by score, "t5" its unigram, "bert" is WordPiece. What it does not have is refused
when it is to be written; what it does almost alike is written and said.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rhapsode.base.errors import DamagedError, InputError, MismatchError, RhapsodeError, nearest
from rhapsode.exchange.gguf_file import Metadata, Value
from rhapsode.exchange.gguf_pieces import model_of, space_steps, tokens_of, unions_decide, unused
from rhapsode.exchange.gguf_vocabulary import (
    ADD_END,
    ADD_START,
    CHARSMAP,
    CUTS,
    DEFAULT_IDS,
    EXTRA_SPACES,
    LOWERCASE,
    MERGES,
    MODEL,
    OLDER_ROLES,
    PRE,
    PRE_TOKENIZERS,
    ROLES,
    SCORES,
    SPACE_PREFIX,
    STRIP_ACCENTS,
    TEMPLATE,
    TOKENS,
    TURN_END_ID,
    TYPES,
    Pre,
    TokenType,
)
from rhapsode.tokenizer.definition import Part, added_token, byte_pairs, definition, frame, word_pieces
from rhapsode.tokenizer.encoders import byte_pair_ranks, merges_of
from rhapsode.tokenizer.formats import sentencepiece
from rhapsode.tokenizer.formats.beside import Beside, Opened, Token, opened
from rhapsode.tokenizer.formats.sentencepiece import BPE, UNIGRAM, Model, Piece
from rhapsode.tokenizer.normalizer import SPACE, CharacterMap
from rhapsode.tokenizer.pre_tokenizers import BYTE_LEVEL, cut_alike
from rhapsode.tokenizer.tokenizer import OTHER_RULES, PROBE, TURN_END, Tokenizer


def tokenizer_from_gguf(metadata: Metadata) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Tokens of type "unused" at the end, which fill up an embedding, are left out.

    Raises:
        InputError: it is of a kind, or cuts text in a way, that is not known here.
        DamagedError: what describes it is incomplete or contradicts itself.
    """
    model = metadata.text(MODEL)
    readers: dict[str, Callable[[Metadata, list[str], list[int], dict[str, int]], Opened]] = {
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
    roles = _roles(metadata, types)
    # There is one for the unknown: older files call unused ones so too.
    types = [TokenType.UNUSED if type == TokenType.UNKNOWN else type for type in types]
    for id in roles.values():
        types[id] = TokenType.CONTROL
    if "unk_token" in roles and model != "gpt2":  # whatever else it is: many pad with it
        types[roles["unk_token"]] = TokenType.UNKNOWN
    while types and types[-1] == TokenType.UNUSED:
        types.pop()
    tokens = tokens[: len(types)]
    _require_distinct(metadata, tokens)
    opened = readers[model](metadata, tokens, types, roles)
    template = metadata.text(TEMPLATE) if TEMPLATE in metadata else None
    text, settings = opened.definition, opened.settings
    del opened  # for a vocabulary as large as GPT-2's it is 30 MB, and is about to be there once more
    return Tokenizer(text, settings=settings, chat_template=template, where=metadata.where)


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
    part = content["model"]["type"]
    byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel"
    if part == "BPE" and byte_level:
        values = _write_byte_pairs(tokenizer, content)
    elif part == "WordPiece":
        values = _write_word_pieces(tokenizer, content)
    elif (model := model_of(tokenizer, content)) is not None and not byte_level:
        values = _write_pieces(tokenizer, content, model)
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
        return [TokenType.NORMAL] * count
    types: list[int] = metadata.numbers(TYPES).tolist()
    if len(types) != count:
        raise DamagedError(f"has {count} tokens and {len(types)} types of tokens", where=metadata.where)
    known = frozenset(TokenType)
    for id, type in enumerate(types):
        if type not in known and type != 0:  # 0 is "undefined": llama.cpp has it in no file that it writes
            raise DamagedError(f"the token {id} is of type {type}, which does not exist", where=metadata.where)
    return [type or TokenType.NORMAL for type in types]


def _roles(metadata: Metadata, types: list[int]) -> dict[str, int]:
    """The id of each special token: those that the metadata names, and what llama.cpp assumes of the others."""
    found: dict[str, int] = {}
    for role, key in (*OLDER_ROLES, *ROLES.items()):
        if key in metadata:
            found[role] = metadata.integer(key)
            if not 0 <= found[role] < len(types):
                raise DamagedError(f"{key} is {found[role]}, and there are {len(types)} tokens", where=metadata.where)
    if "unk_token" not in found and TokenType.UNKNOWN in types:
        found["unk_token"] = types.index(TokenType.UNKNOWN)
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    for role, id in DEFAULT_IDS[metadata.text(MODEL)].items():
        free = role not in found and id < len(types) and id not in found.values()
        if free and (types[id] in special or TYPES not in metadata):
            found[role] = id
    return found


def _around(metadata: Metadata) -> tuple[bool, bool]:
    """Whether the start token goes before a text, and the end token after it."""
    model = metadata.text(MODEL)
    if model == "bert":
        return True, True
    pre = PRE_TOKENIZERS.get(metadata.text(PRE, "default"), Pre(""))
    return metadata.flag(ADD_START, model == "llama" or pre.start), metadata.flag(ADD_END, model == "t5")


def _read_byte_pairs(metadata: Metadata, tokens: list[str], types: list[int], roles: dict[str, int]) -> Opened:
    pre = metadata.text(PRE)
    if pre not in PRE_TOKENIZERS:
        raise InputError(
            f"cuts text by the pre-tokeniser {pre!r}, which is not known here",
            where=metadata.where,
            todo=nearest(pre, PRE_TOKENIZERS),
        )
    # Added tokens that come last stay out of the vocabulary, as their publishers have it: no text can spell them.
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    end = max((id + 1 for id, type in enumerate(types) if type not in added), default=0)
    vocabulary = {token: id for id, token in enumerate(tokens[:end])}
    merges = []
    for number, merge in enumerate(metadata.texts(MERGES)):
        cut = merge.find(" ", 1)  # as llama.cpp: the first place may be a space itself
        left, right = merge[: max(cut, 0)], merge[cut + 1 :]
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise DamagedError(f"the merge {number}, {merge[:50]!r}, is not one of its tokens", where=metadata.where)
        merges.append((left, right))
    front, back = (
        [tokens[roles[role]]] if wanted and role in roles else []
        for wanted, role in zip(_around(metadata), ("bos_token", "eos_token"), strict=True)
    )
    content = definition(
        byte_pairs(vocabulary, merges) | {"ignore_merges": PRE_TOKENIZERS[pre].whole},
        pre_tokenizer=CUTS[PRE_TOKENIZERS[pre].cut],
        post_processor=frame(front, back, {token: id for id, token in enumerate(tokens)}),
        decoder=BYTE_LEVEL,
        added_tokens=_added_tokens(tokens, types),
    )
    return opened(content, {role: tokens[id] for role, id in roles.items()}, metadata.where)


def _read_pieces(metadata: Metadata, tokens: list[str], types: list[int], roles: dict[str, int]) -> Opened:
    joins = metadata.text(MODEL) == "llama"
    scores = metadata.numbers(SCORES).tolist()[: len(tokens)]
    if len(scores) < len(tokens):
        raise DamagedError(f"has {len(tokens)} tokens and {len(scores)} scores", where=metadata.where)
    pieces = []
    for id, (token, score, type) in enumerate(zip(tokens, scores, types, strict=True)):
        if not math.isfinite(score):
            raise DamagedError(f"the score of token {id} is {score}", where=metadata.where)
        # No text becomes an unused token, and so much is true of the others that are put in by number only.
        pieces.append(Piece(token, score, TokenType.CONTROL if type == TokenType.UNUSED else type))
    normal = [piece for piece in pieces if piece.type == TokenType.NORMAL and len(piece.text) > 1]
    if joins and len(normal) > 1 and len({piece.score for piece in normal}) == 1:
        raise DamagedError("gives all tokens one score: nothing says in which order to join them", where=metadata.where)
    if "unk_token" not in roles:
        raise DamagedError("has no token for what it does not know", where=metadata.where)
    character_map = metadata.numbers(CHARSMAP, np.zeros(0)).astype(np.uint8).tobytes()
    if character_map:
        CharacterMap(character_map, metadata.where)
    model = Model(
        pieces,
        type=BPE if joins else UNIGRAM,
        byte_fallback=TokenType.BYTE in types,
        character_map=character_map,
        add_dummy_prefix=metadata.flag(SPACE_PREFIX, joins),
        remove_extra_whitespaces=not joins and metadata.flag(EXTRA_SPACES, False),
    )
    add_start, add_end = _around(metadata)
    settings = {"add_bos_token": add_start, "add_eos_token": add_end}
    named = {role: Token(tokens[id], id) for role, id in roles.items()}
    read = sentencepiece.from_model(model, Beside(metadata.where, settings, "", named), metadata.where)
    return replace(read, settings=read.settings | settings)


def _read_word_pieces(metadata: Metadata, tokens: list[str], types: list[int], roles: dict[str, int]) -> Opened:
    special = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED, TokenType.UNUSED)
    names = [token if type in special else _word_piece(token) for token, type in zip(tokens, types, strict=True)]
    _require_distinct(metadata, names)
    missing = [role for role in ("unk_token", "bos_token", "sep_token") if role not in roles]
    if missing:
        raise DamagedError(f"has no token for the role {missing[0]}", where=metadata.where)
    vocabulary = {name: id for id, name in enumerate(names)}
    settings = {role: names[id] for role, id in roles.items()}
    settings["cls_token"] = settings["bos_token"]
    lowercase = metadata.flag(LOWERCASE, True)
    content = definition(
        word_pieces(vocabulary, settings["unk_token"]),
        normalizer=_bert_normalizer(lowercase, metadata.flag(STRIP_ACCENTS, lowercase)),
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=frame([settings["cls_token"]], [settings["sep_token"]], vocabulary, typed=True),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        added_tokens=_added_tokens(names, types),
    )
    return opened(content, settings, metadata.where)


def _added_tokens(tokens: list[str], types: list[int]) -> list[Part]:
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        added_token(token, id, special=type in special)
        for id, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type in special or type == TokenType.USER_DEFINED
    ]


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
        prefixed = cut.get("prepend_scheme") != "never"
        content["normalizer"] = {"type": "Sequence", "normalizers": space_steps(prefixed)}
        content["pre_tokenizer"] = None
        if prefixed:
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
    names = {id: name for name, id in content["model"]["vocab"].items()}
    tokens, types = tokens_of(tokenizer, content, names)
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


def _write_pieces(tokenizer: Tokenizer, content: Part, model: Model) -> dict[str, Value]:
    joins = model.type == BPE
    if any(content["model"].get(field) for field in (*OTHER_RULES, "ignore_merges")):
        raise _refused(tokenizer, "joins pieces by rules that llama.cpp does not have")
    if not model.of_type(TokenType.UNKNOWN):
        raise _refused(tokenizer, "has no token for what it does not know")
    if not joins and model.byte_fallback:
        raise _refused(tokenizer, "writes what it does not know as bytes, which llama.cpp does not do for its kind")
    if joins and (model.character_map or model.remove_extra_whitespaces):
        raise _refused(tokenizer, "changes text before it is cut, which llama.cpp does not do for its kind")
    if joins and len(model.of_type(TokenType.BYTE)) != 256:
        raise _refused(tokenizer, "has no tokens for the bytes of what it does not know")
    if joins and not unions_decide(model, merges_of(content["model"])):
        raise _refused(tokenizer, "joins pieces by more than the order of their unions")
    values: dict[str, Value] = {
        MODEL: "llama" if joins else "t5",
        PRE: "default",
        TOKENS: [piece.text for piece in model.pieces],
        SCORES: np.array([piece.score for piece in model.pieces], dtype=np.float32),
        TYPES: np.array([piece.type for piece in model.pieces], dtype=np.int32),
        SPACE_PREFIX: model.add_dummy_prefix,
    }
    if not joins:
        values[EXTRA_SPACES] = model.remove_extra_whitespaces
        if model.character_map:
            values[CHARSMAP] = np.frombuffer(model.character_map, dtype=np.uint8)
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
    names = {id: name for name, id in content["model"]["vocab"].items()}
    tokens, types = tokens_of(tokenizer, content, names)
    plain = (TokenType.NORMAL,)
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


def _fill_up(tokenizer: Tokenizer, values: dict[str, Value], rows: int | None) -> None:
    """Unused tokens for the rest of the embedding: llama.cpp takes its size from the number of tokens."""
    count = len(values[TOKENS])
    missing = 0 if rows is None else rows - count
    if missing < 0:
        raise MismatchError(f"has {count} tokens, and the model only {rows} rows for them", where=tokenizer.where)
    values[TOKENS] += [unused(id) for id in range(count, count + missing)]
    values[TYPES] = np.concatenate([values[TYPES], np.full(missing, TokenType.UNUSED, dtype=np.int32)])
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

    front, back = tokenizer.frame
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
    text = unicodedata.normalize("NFC", PROBE) + "a".join(" " * length for length in range(40))
    if tokenizer.encode(text) != again.encode(text):
        raise RhapsodeError("the tokenizer does not come back from GGUF as it went in", where=tokenizer.where)


def _refused(tokenizer: Tokenizer, why: str) -> InputError:
    nearest_kind = "BERT's WordPiece" if tokenizer.kind == "wordpiece" else "byte-level BPE"
    return InputError(
        f"cannot be written to GGUF: it {why}",
        where=tokenizer.where,
        todo=f"The nearest that llama.cpp has is {nearest_kind}.",
    )
