"""What GGUF files say of tokenizers: the keys, the types of tokens, the names of the ways to cut text.

The facts are llama.cpp's (llama-vocab.cpp and its converter); the expressions are the publishers' own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from rhapsode.tokenizer.definition import Part
from rhapsode.tokenizer.pre_tokenizers import BYTE_LEVEL, PATTERNS, pre_tokenizer_settings, split_settings

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

OLDER_ROLES = (("bos_token", "tokenizer.ggml.cls_token_id"),)  # a key for BERT that is written no more

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


class TokenType(IntEnum):
    """What a token is for; the numbers are those of GGUF and of SentencePiece's model format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


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
