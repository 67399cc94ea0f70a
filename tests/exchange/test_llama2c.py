"""Checkpoints of llama2.c: the published text, both formats, and files that are not what they say."""

from __future__ import annotations

import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.exchange.doors import export_model, import_model
from rhapsode.exchange.llama2c import VERSION_1_HEADER, open_checkpoint, read_header, read_tokenizer
from rhapsode.exchange.recognise import kind_of
from rhapsode.exchange.rotary import halves, neighbours
from rhapsode.inference.language_model import LanguageModel, load

SIZES = {"stories260K.bin": 1_056_540, "stories260K_v1.bin": 1_040_384}


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    return shared_data / "weights" / "stories260K"


@pytest.fixture(scope="session")
def expected(stories: Path) -> str:
    """What run.c writes at temperature 0 in 200 steps."""
    return (stories / "expected_greedy_200.txt").read_text(encoding="utf-8").removesuffix("\n")


@pytest.fixture
def copy(stories: Path, tmp_path: Path) -> Path:
    """A copy of the first checkpoint, beside its tokenizer."""
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copyfile(stories / name, tmp_path / name)
    return tmp_path / "stories260K.bin"


def greedy(model: LanguageModel) -> str:
    return model.generate("", temperature=0, max_new_tokens=200).text


@pytest.mark.parametrize("name", SIZES)
def test_the_published_text(stories: Path, expected: str, name: str) -> None:
    assert greedy(load(stories / name, "cpu")) == expected


def test_the_published_text_through_every_door(stories: Path, expected: str, tmp_path: Path) -> None:
    """From llama2.c to Hugging Face, to GGUF, and from there to Hugging Face; at each stop, and in transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    passages = [
        import_model(stories / "stories260K.bin", tmp_path / "first"),
        export_model(tmp_path / "first", tmp_path / "model.gguf", format="gguf"),
        import_model(tmp_path / "model.gguf", tmp_path / "second"),
        export_model(stories / "stories260K_v1.bin", tmp_path / "direct.gguf", format="gguf"),
    ]
    for passage in passages:
        assert not passage.parity.faults
        assert passage.parity.rows[0].largest == 0.0  # ours: not one bit was lost
        assert greedy(load(passage.path, "cpu")) == expected
    for folder in (tmp_path / "first", tmp_path / "second"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        ids = theirs.generate(torch.tensor([[1]]), do_sample=False, max_new_tokens=200)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == expected


def test_the_shape(stories: Path) -> None:
    for name, size in SIZES.items():
        header = read_header(stories / name)
        assert header.size == size
        config = header.config
        shape = (config.hidden_size, config.layers, config.heads, config.kv_heads, config.intermediate_size)
        assert (*shape, config.vocabulary_size, config.context_length) == (64, 5, 8, 4, 172, 512, 512)
        assert config.tied_embeddings


def test_the_tokenizer_joins_as_run_c_does(stories: Path) -> None:
    """The best score first, the leftmost of equals; bytes for what is unknown: written down once more, slowly."""
    tokenizer = read_tokenizer(stories / "tok512.bin")
    assert tokenizer.frame == ([1], [])
    data = (stories / "tok512.bin").read_bytes()
    place, pieces, scores = 4, list[bytes](), list[float]()
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        pieces.append(data[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    ids = {piece: id for id, piece in enumerate(pieces)}

    def run_c(text: str) -> list[int]:
        found: list[int] = [ids[b" "]] if text else []
        for character in text:
            data = character.encode()
            found += [ids[data]] if data in ids else [byte + 3 for byte in data]
        while True:
            best = max(
                (
                    (scores[ids[pieces[a] + pieces[b]]], -n)
                    for n, (a, b) in enumerate(pairwise(found))
                    if pieces[a] + pieces[b] in ids
                ),
                default=None,
            )
            if best is None:
                return found
            n = -best[1]
            found[n : n + 2] = [ids[pieces[found[n]] + pieces[found[n + 1]]]]

    for text in (
        "",
        "Once upon a time",
        "  two  spaces\n",
        "naïve 🦙 façade",
        "aaaaaaaaaa   ",
        'Lily\'s mom said, "No!"',
    ):
        assert tokenizer.encode(text) == run_c(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_untied_head(copy: Path) -> None:
    """A negative vocabulary in the first format, a flag in version 1: the head follows at the end."""
    data = bytearray(copy.read_bytes())
    data[20:24] = struct.pack("<i", -512)
    head = np.random.default_rng(0).standard_normal((512, 64), dtype=np.float32)
    copy.write_bytes(bytes(data) + head.tobytes())
    opened = open_checkpoint(copy)
    assert not opened.model.config.tied_embeddings
    assert np.array_equal(opened.model.head.weight.detach().numpy(), head)
    assert opened.model.embedding.weight[0, 0].item() == struct.unpack_from("<f", data, 28)[0]


def test_what_is_written_to_the_weights_stays_in_memory(copy: Path) -> None:
    before = copy.read_bytes()
    with torch.no_grad():
        for parameter in open_checkpoint(copy).model.parameters():
            parameter.zero_()
    assert copy.read_bytes() == before


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [-1, -1000, 1, 4])
def test_a_size_that_is_not_the_header_s(stories: Path, tmp_path: Path, name: str, change: int) -> None:
    data = (stories / name).read_bytes()
    (tmp_path / "model.bin").write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(DamagedError, match=f"has {len(data) + change:,} bytes; its header asks for {len(data):,}"):
        load(tmp_path / "model.bin", "cpu")


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("value", [0, -1, 3, 2**31 - 1, -(2**31), 2**26 + 1])
def test_sizes_of_no_model(stories: Path, tmp_path: Path, place: int, value: int) -> None:
    for name, start in (("stories260K.bin", 0), ("stories260K_v1.bin", 8)):
        if start and place == 6 and value == 3:  # a shorter context, which takes nothing of the file
            continue
        data = bytearray((stories / name).read_bytes())
        data[start + 4 * place : start + 4 * place + 4] = struct.pack("<i", value)
        (tmp_path / "model.bin").write_bytes(data)
        with pytest.raises(InputError, match=r"its header asks for|sizes that no model has"):
            open_checkpoint(tmp_path / "model.bin")


def test_a_quantised_version(stories: Path, tmp_path: Path) -> None:
    data = bytearray((stories / "stories260K_v1.bin").read_bytes())
    data[4:8] = struct.pack("<i", 2)
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(InputError, match=r"is of version 2 .* --version 0 or 1"):
        load(tmp_path / "model.bin", "cpu")
    (tmp_path / "model.bin").write_bytes(data[: VERSION_1_HEADER - 1])
    with pytest.raises(DamagedError, match="is cut short within its header"):
        load(tmp_path / "model.bin", "cpu")


def test_the_tokenizer_is_found_or_named(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    alone = Path(shutil.copyfile(copy, tmp_path / "sub" / "model.bin"))
    with pytest.raises(InputError, match=r"beside it is no tokenizer of 512 tokens \(tok\*\.bin\).*--tokenizer FILE"):
        load(alone, "cpu")
    assert load(alone, "cpu", tokenizer=tmp_path / "tok512.bin").config.layers == 5
    imported = import_model(copy, tmp_path / "folder").path
    assert load(alone, "cpu", tokenizer=imported).tokenizer.digest == load(imported, "cpu").tokenizer.digest
    shutil.copyfile(tmp_path / "tok512.bin", tmp_path / "tokens.bin")
    with pytest.raises(InputError, match=r"several tokenizers of 512 tokens: tok512\.bin, tokens\.bin"):
        load(copy, "cpu")


def test_a_tokenizer_of_another_model(copy: Path, tmp_path: Path) -> None:
    data = (tmp_path / "tok512.bin").read_bytes()
    shorter = tmp_path / "shorter"
    shorter.write_bytes(data[: -(8 + 3)])
    with pytest.raises(MismatchError, match="has 511 tokens, the model 512"):
        load(copy, "cpu", tokenizer=shorter)


@pytest.mark.parametrize(
    ("start", "value", "words"),
    [
        (0, struct.pack("<i", 2), "token 0 would have 5 bytes"),
        (4, struct.pack("<f", float("nan")), "token 0 has the score nan"),
        (8, struct.pack("<i", -5), "token 0 would have -5 bytes"),
        (8, struct.pack("<i", 2**31 - 1), "would have 2147483647 bytes"),
        (12, b"<\xffnk>", "is not UTF-8 text"),
        (12, b"<unx>", "token 0 is '<unx>', not <unk>"),
        (53, b"7", "token 3 is '<7x00>', not <0x00>"),
    ],
)
def test_damaged_tokenizers(stories: Path, tmp_path: Path, start: int, value: bytes, words: str) -> None:
    data = bytearray((stories / "tok512.bin").read_bytes())
    data[start : start + len(value)] = value
    (tmp_path / "tok.bin").write_bytes(data)
    with pytest.raises(DamagedError, match=words):
        read_tokenizer(tmp_path / "tok.bin")


def test_recognised_by_content(copy: Path, stories: Path, tmp_path: Path) -> None:
    assert kind_of(Path(shutil.move(copy, tmp_path / "model.gguf"))) == "llama2.c"
    assert kind_of(stories / "tok512.bin") == "unknown"
    assert kind_of(stories / "expected_greedy_200.txt") == "unknown"


@given(heads=st.integers(1, 4), half=st.integers(1, 4), columns=st.integers(0, 3))
def test_the_two_orders_of_rows(heads: int, half: int, columns: int) -> None:
    """Row 2i of a head goes to i, row 2i + 1 to i + half."""
    rows = 2 * half
    matrix = torch.arange(heads * rows * max(1, columns)).view(heads * rows, *([columns] if columns else []))
    moved = halves(matrix, heads)
    for head in range(heads):
        for pair in range(half):
            start = head * rows
            assert torch.equal(moved[start + pair], matrix[start + 2 * pair])
            assert torch.equal(moved[start + pair + half], matrix[start + 2 * pair + 1])
    assert torch.equal(neighbours(moved, heads), matrix)
