"""bpe_simple_vocab_16e6.txt, or vocab.json with merges.txt: CLIP's byte-level BPE, whose words end with </w>."""

from __future__ import annotations

from pathlib import Path

from rhapsode.tokenizer.definition import Part, byte_pairs, definition, sequence
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import byte_pairs as pairs
from rhapsode.tokenizer.formats import files
from rhapsode.tokenizer.formats.beside import Beside, Opened
from rhapsode.tokenizer.pre_tokenizers import BYTE_LEVEL, byte_characters, split_settings

END_OF_WORD = "</w>"
ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
MERGES = 48_894  # that OpenAI's CLIP takes of the 262,144 in its file

# As CLIP's publisher wrote it: what it does not match, white space, is left out.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find(folder: Path) -> Path | None:
    """The merges in `folder`, if they are CLIP's."""
    file = pairs.find(folder)
    return file if file is not None and recognise(file, files.read_bytes(file)) else None


def recognise(file: Path, data: bytes) -> bool:
    """Whether `data` are merges, or a vocabulary that has its merges beside it, and some end a word early on."""
    if data.lstrip()[:1] == b"{":
        merges = pairs.merges_beside(file)
        return merges is not None and recognise(merges, files.read_bytes(merges))
    return pairs.recognise(file, data) and f"{END_OF_WORD}\n".encode() in data[:4096]


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """CLIP's tokenizer, with the ids of a vocabulary beside the merges, or those that follow from the merges.

    Raises:
        InputError: it is of another family whose words end so.
        DamagedError: the files are not what they should be.
    """
    where, vocabulary, merges = pairs.read_pair(file, data)
    if vocabulary is None:
        merges = merges[:MERGES]
        alphabet = sorted(byte_characters())
        tokens = [*alphabet, *(character + END_OF_WORD for character in alphabet), *map("".join, merges)]
        tokens += [ROLES["bos_token"], ROLES["eos_token"]]
        vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs.require_parts(merges, vocabulary, where)
    pairs.note_missing_bytes(vocabulary, where)
    names, added = surroundings.complete(beside, vocabulary, ROLES)
    spaces: Part = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    word_end: Part = {"type": "Replace", "pattern": {"String": END_OF_WORD}, "content": " "}
    cut = split_settings(PATTERN) | {"behavior": "Removed", "invert": True}
    content = definition(
        byte_pairs(vocabulary, merges, unknown=names.get("unk_token"), end_of_word=END_OF_WORD),
        normalizer=sequence("normalizers", [{"type": "NFC"}, spaces, {"type": "Lowercase"}]),
        pre_tokenizer=sequence("pretokenizers", [cut, BYTE_LEVEL]),
        post_processor=pairs.enclosing("bos_token", "eos_token", names, vocabulary, spaced=False),
        decoder=sequence("decoders", [BYTE_LEVEL, word_end, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]),
        added_tokens=added,
    )
    return surroundings.opened(content, surroundings.settings_of(beside, names), where)
