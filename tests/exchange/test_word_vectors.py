"""Word-vector files by others open as gensim opens them, those written here come back, and damaged ones are refused."""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.exchange.word_vectors import Matrix, read_word_vectors

SHARED = {
    "glove.840B.300d_top256.txt": ("GloVe text", 256, 300),
    "wiki.en.top.vec": ("word2vec text", 99, 300),
    "gensim/test_glove.txt": ("GloVe text", 76, 50),
    "gensim/crime-and-punishment.vec": ("word2vec text", 291, 5),
    "gensim/crime-and-punishment.bin": ("fastText binary", 291, 5),
    "gensim/euclidean_vectors.bin": ("word2vec binary", 2747, 10),
}


def glove_text(words: list[str], matrix: Matrix) -> bytes:
    rows = (" ".join([word, *map(repr, row.tolist())]) for word, row in zip(words, matrix, strict=True))
    return "".join(f"{row}\n" for row in rows).encode()


def word2vec_text(words: list[str], matrix: Matrix) -> bytes:
    return f"{len(words)} {matrix.shape[1]}\n".encode() + glove_text(words, matrix)


def word2vec_binary(words: list[str], matrix: Matrix, *, line_ends: bool = True) -> bytes:
    header = f"{len(words)} {matrix.shape[1]}\n".encode()
    end = b"\n" if line_ends else b""
    return header + b"".join(
        word.encode() + b" " + row.astype("<f4").tobytes() + end for word, row in zip(words, matrix, strict=True)
    )


def fasttext_binary(words: list[str], matrix: Matrix, *, buckets: int = 0) -> bytes:
    """A fastText model. Without buckets for n-grams, each word's vector is its own row; those of n-grams are zero."""
    rows, dimension = matrix.shape
    settings = [dimension, 5, 5, 1, 5, 1, 2, 2, buckets, 3 * bool(buckets), 6 * bool(buckets), 100]
    dictionary = struct.pack("<iiiqq", rows, rows, 0, 1000, -1)
    entries = b"".join(word.encode() + b"\0" + struct.pack("<qb", 7, 0) for word in words)
    output = struct.pack("<?qq", False, rows, dimension) + matrix.astype("<f4").tobytes()
    numbers = matrix.astype("<f4").tobytes() + bytes(4 * buckets * dimension)
    numbers = struct.pack("<?qq", False, rows + buckets, dimension) + numbers
    return struct.pack("<ii12id", 793712314, 12, *settings, 1e-4) + dictionary + entries + numbers + output


def fasttext_with_ngrams(words: list[str], matrix: Matrix) -> bytes:
    return fasttext_binary(words, matrix, buckets=50)


WRITERS: dict[str, Callable[[list[str], Matrix], bytes]] = {
    "GloVe text": glove_text,
    "word2vec text": word2vec_text,
    "word2vec binary": word2vec_binary,
    "fastText binary": fasttext_binary,
}


def example(words: int = 40, dimension: int = 6) -> tuple[list[str], Matrix]:
    matrix = np.random.default_rng(0).normal(size=(words, dimension)).astype(np.float32)
    return [f"word{number}" for number in range(words)], matrix


def read(path: Path, data: bytes) -> tuple[list[str], Matrix, list[str]]:
    path.write_bytes(data)
    file = read_word_vectors(path)
    return file.words, file.matrix, file.notes


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_word_vectors(path)
    return caught.value.message.removeprefix(str(path))


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("packed", [False, True])
def test_files_by_others(name: str, packed: bool, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "embeddings" / name
    if packed:
        (tmp_path / "packed").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "packed"
    form, words, dimension = SHARED[name]
    file = read_word_vectors(path)
    assert file.form == form
    assert file.matrix.shape == (words, dimension) == (len(file.words), dimension)
    assert file.matrix.dtype == np.float32
    excerpt = "99 vectors follow, where the first line promises 2,519,370: the file is the beginning of another."
    assert file.notes == ([excerpt] if name.startswith("wiki") else [])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # gensim leaves them open
def test_words_and_numbers_are_those_gensim_reads(shared_data: Path) -> None:
    models = pytest.importorskip("gensim.models", reason="gensim is not installed")
    folder = shared_data / "embeddings"
    for name, options in (
        ("glove.840B.300d_top256.txt", {"no_header": True}),
        ("gensim/test_glove.txt", {"no_header": True}),
        ("gensim/crime-and-punishment.vec", {}),
        ("gensim/euclidean_vectors.bin", {"binary": True}),
    ):
        theirs = models.KeyedVectors.load_word2vec_format(str(folder / name), **options)
        ours = read_word_vectors(folder / name)
        assert ours.words == theirs.index_to_key
        assert np.array_equal(ours.matrix, theirs.vectors)
    theirs = models.fasttext.load_facebook_vectors(str(folder / "gensim/crime-and-punishment.bin"))
    ours = read_word_vectors(folder / "gensim/crime-and-punishment.bin")
    assert ours.words == theirs.index_to_key
    # gensim gives the end of a sentence n-grams, which fastText does not (the next test).
    others = [word for word in ours.words if word != "</s>"]
    rows = [ours.words.index(word) for word in others]
    assert np.abs(ours.matrix[rows] - theirs[others]).max() < 1e-7


def test_words_and_numbers_are_those_a_plain_reading_gives(shared_data: Path) -> None:
    folder = shared_data / "embeddings"
    for name, header in (
        ("glove.840B.300d_top256.txt", 0),
        ("wiki.en.top.vec", 1),
        ("gensim/test_glove.txt", 0),
        ("gensim/crime-and-punishment.vec", 1),
    ):
        lines = (folder / name).read_text(encoding="utf-8").rstrip("\n").split("\n")[header:]
        rows = [line.rstrip(" ").split(" ") for line in lines]
        ours = read_word_vectors(folder / name)
        assert ours.words == [row[0] for row in rows]
        assert np.array_equal(ours.matrix, np.array([row[1:] for row in rows], dtype=np.float32))


def test_a_fasttext_model_gives_the_vectors_that_fasttext_wrote_beside_it(shared_data: Path) -> None:
    folder = shared_data / "embeddings" / "gensim"
    model = read_word_vectors(folder / "crime-and-punishment.bin")
    written = read_word_vectors(folder / "crime-and-punishment.vec")
    assert model.words == written.words
    assert np.abs(model.matrix - written.matrix).max() < 1e-5  # the text has five digits


def test_the_vector_of_a_word_is_the_mean_over_its_ngrams_and_itself(tmp_path: Path) -> None:
    words, matrix = ["a", "gold", "</s>", "größe"], example(4)[1]
    # <a>; <go gol old ld> <gol gold old> <gold gold> <gold>; none; and of seven signs 5 + 4 + 3 + 2
    counts = [1, 4 + 3 + 2 + 1, 0, 5 + 4 + 3 + 2]
    _, found, _ = read(tmp_path / "a", fasttext_with_ngrams(words, matrix))
    assert np.allclose(found, matrix / (1 + np.array(counts))[:, None], rtol=1e-6)


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=12),
    min_size=1,
    max_size=20,
    unique=True,
)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(words=WORDS, dimension=st.integers(3, 6), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_comes_back(tmp_path: Path, words: list[str], dimension: int, data: st.DataObject) -> None:
    row = st.lists(NUMBERS, min_size=dimension, max_size=dimension)
    matrix = np.array(data.draw(st.lists(row, min_size=len(words), max_size=len(words))), dtype=np.float32)
    matrix[0, 0] = 1e-40  # bytes that no text has, for the binary forms to be known by
    for form, writer in WRITERS.items():
        path = tmp_path / "file"
        for bytes_of_file in (writer(words, matrix), gzip.compress(writer(words, matrix), 1)):
            path.write_bytes(bytes_of_file)
            file = read_word_vectors(path)
            assert (file.form, file.words, file.notes) == (form, words, [])
            assert np.array_equal(file.matrix, matrix)


def test_binary_without_line_ends(tmp_path: Path) -> None:
    words, matrix = example()
    assert read(tmp_path / "a", word2vec_binary(words, matrix, line_ends=False))[0] == words
    assert np.array_equal(read(tmp_path / "a", word2vec_binary(words, matrix, line_ends=False))[1], matrix)


def test_lines_as_tools_write_them(tmp_path: Path) -> None:
    matrix = [[0.5, -1.0], [2.0, 3e-2]]
    for data in (
        b"a 0.5 -1\nb 2 3e-2\n",
        b"a 0.5 -1 \nb 2 3e-2 \n",
        b"a\t0.5\t-1\r\nb\t2\t3e-2\r\n",
        b"a 0.5 -1\nb 2 3e-2",
        b"2 2\na 0.5 -1\nb 2 3e-2",
        b"2 2 \r\na 0.5 -1\r\nb 2 3e-2\r\n",
    ):
        words, numbers, notes = read(tmp_path / "a", data)
        assert (words, notes) == (["a", "b"], [])
        assert np.array_equal(numbers, np.array(matrix, dtype=np.float32))


def test_words_may_look_like_numbers_and_hold_spaces(tmp_path: Path) -> None:
    """GloVe of the Common Crawl has words like `. . .` and `at name@domain.com`."""
    data = "1 0.5 1\n. . . 0.25 2\nat name@domain.com 3 4\n1.5 5 6\n\u00a0 7 8\nnew\u3000york 9 10\n".encode()
    words, matrix, notes = read(tmp_path / "a", data)
    assert words == ["1", ". . .", "at name@domain.com", "1.5", "\u00a0", "new\u3000york"]
    assert matrix[:, 1].tolist() == [1, 2, 4, 6, 8, 10]
    assert notes == []


def test_what_is_odd_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [(b"one", 1.0), (b"two", 2.0), (b"one", 3.0), (b"caf\xe9", 4.0), (b"two", 5.0), (b"three", 6.0)]
    text = b"".join(b"%s %f 0.5\n" % row for row in rows)
    binary = b"".join(word + b" " + struct.pack("<2f", number, 0.5) for word, number in rows)
    for data in (text, b"6 2\n" + text, b"6 2\n" + binary):
        words, matrix, notes = read(tmp_path / "a", data)
        assert words == ["one", "two", "three"]
        assert matrix[:, 0].tolist() == [1, 2, 6]
        assert sorted(notes) == [
            "1 vector was left out, whose word is no UTF-8.",
            "2 vectors were left out, whose word stands there a second time.",
        ]


def test_what_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    good = b"one 1 2\ntwo 3 4\n"
    for line, told in (
        (b"three 5\n", "there are 1 numbers after the word; 2 belong there"),
        (b"three 5 6 7\n", "there are 3 numbers after the word; 2 belong there"),
        (b"5 6\n", "there are 1 numbers after the word; 2 belong there"),
        (b"\n", "there are 0 numbers after the word; 2 belong there"),
        (b"three 5 x\n", "'x' is not a number"),
        (b"three 1_0 2\n", "'1_0' is not a number"),
        (b"three 5 nan\n", "'nan' is not a finite number of 32 bits"),
        (b"three -inf 6\n", "'-inf' is not a finite number of 32 bits"),
        (b"three 5 1e39\n", "'1e39' is not a finite number of 32 bits"),
        (b"three \xff\xfe 5\n", "'\\\\xff\\\\xfe' is not a number"),
        (b"x" * 20_000 + b" 5 6\n", "the line is longer than 10,080 bytes"),
        (b"x" * 10_050 + b" 5 6\n", "the word is longer than 10,000 bytes"),
    ):
        assert refused(path, good + line + b"four 7 8\n").startswith(f":3: {told}")
        assert refused(path, b"4 2\n" + good + line + b"four 7 8\n").startswith(f":4: {told}")


def test_an_excerpt_is_told_and_a_cut_is_refused(tmp_path: Path) -> None:
    words, matrix = example()
    path = tmp_path / "a"
    text = word2vec_text(words, matrix)
    lines = text.split(b"\n")
    told, _, notes = read(path, b"\n".join(lines[:11]) + b"\n")
    assert told == words[:10]
    assert notes == ["10 vectors follow, where the first line promises 40: the file is the beginning of another."]
    cut = b"\n".join(lines[:11])
    assert refused(path, cut).startswith(": 10 vectors follow, where the first line promises 40")
    cut = cut[: cut.rindex(b" ")]
    assert refused(path, cut).startswith(":11: there are 5 numbers after the word; 6 belong there")
    assert refused(path, text + b"more 1 2 3 4 5 6\n").startswith(
        ": 41 vectors follow, where the first line promises 40"
    )


def test_binary_files_that_are_not_as_they_promise(tmp_path: Path) -> None:
    words, matrix = example()
    path, data = tmp_path / "a", word2vec_binary(words, matrix)
    assert "is too short for the 40 vectors of 6 numbers" in refused(path, data[:1000])
    assert refused(path, data[:-3]).startswith(", vector 40: the file ends within it")
    assert "goes on after the 40 vectors" in refused(path, data + b"x")
    assert "is too short for the 900,000,000,000 vectors" in refused(path, data.replace(b"40 6", b"900000000000 6", 1))
    assert refused(path, data.replace(b"40 6", b"40 0", 1)).startswith(":1: says it has 40 vectors of 0 numbers")
    assert refused(path, data.replace(b"40 6", b"0 6", 1)).startswith(":1: says it has 0 vectors of 6 numbers")
    assert refused(path, data.replace(b"40 6", b"40 99999999", 1)).startswith(
        ":1: says it has 40 vectors of 99,999,999"
    )
    matrix[7, 3] = np.nan
    assert refused(path, word2vec_binary(words, matrix)) == ", vector 8: a value is not a finite number."
    words[4] = ""
    assert refused(path, word2vec_binary(words, matrix)).startswith(", vector 5: has no word")
    words[4] = "x" * 10_001
    assert refused(path, word2vec_binary(words, matrix)).startswith(", vector 5: no word ends within 10,000 bytes")


def test_fasttext_files_that_are_not_as_they_promise(tmp_path: Path) -> None:
    words, matrix = example()
    path, data = tmp_path / "a", fasttext_binary(words, matrix)
    at = {"version": 4, "longest": 8 + 4 * 10, "entries": 64, "words": 68, "pruned": 84}

    def changed(field: str, value: int) -> bytes:
        return data[: at[field]] + struct.pack("<i", value) + data[at[field] + 4 :]

    assert "version 10; 11 and 12 are read" in refused(path, changed("version", 10))
    assert "says its n-grams have up to 33 characters" in refused(path, changed("longest", 33))
    assert "says it has 40 words" in refused(path, changed("entries", 41))
    assert "says it has 41 words" in refused(path, changed("words", 41))
    assert "is a quantised fastText model" in refused(path, changed("pruned", 0).replace(b"\xff" * 4, b"\0" * 4, 1))
    assert "the file ends at byte 70" in refused(path, data[:70])
    assert "entry 3 of its dictionary does not end" in refused(path, data[:130])
    assert "says it has a matrix of 40 rows and 6 columns, which cannot be" in refused(path, data[:1600])
    assert "is not as long as its matrices" in refused(path, data[:-1])
    assert "is not as long as its matrices" in refused(path, data + b"x")
    words[4] = ""
    assert "entry 5 of its dictionary has no word" in refused(path, fasttext_binary(words, matrix))
    words[4], matrix[7, 3] = "five", np.inf
    assert refused(path, fasttext_binary(words, matrix)) == ", vector 8: a value is not a finite number."


def test_files_that_hold_no_word_vectors(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert refused(path, b"").startswith(": is empty")
    assert "its first line is neither a word with numbers" in refused(path, b"To be, or not to be\n")
    assert "its first line is neither a word with numbers" in refused(path, bytes(range(256)))
    assert "which can run code and are never read" in refused(path, b"\x80\x04\x95")
    assert "is a zip archive" in refused(path, b"PK\x03\x04")
    assert "no vector in it has a word" in refused(path, b"\xff 1 2\n")
    assert "cannot be unpacked" in refused(path, gzip.compress(b"a 1 2\n" * 1000)[:-9])
    assert "unpacks to more than 67,108,864 bytes" in refused(path, gzip.compress(bytes(70_000_000)))
    with pytest.raises(InputError, match="is not a file"):
        read_word_vectors(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_word_vectors(tmp_path / "none")


PEAK = """
import re, sys
from pathlib import Path
from rhapsode.exchange.word_vectors import read_word_vectors
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
file = read_word_vectors(Path(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc to read the peak from")
@pytest.mark.parametrize("form", WRITERS)
def test_memory_is_the_matrix_and_the_words(form: str, tmp_path: Path) -> None:
    words, matrix = example(8_000, 250)
    (tmp_path / "a").write_bytes(WRITERS[form](words, matrix))
    peak = int(subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path / "a")]))
    mapped = matrix.nbytes if form == "fastText binary" else 0  # pages of the file, which the system may take back
    assert matrix.nbytes < peak < 1.1 * matrix.nbytes + mapped + 200 * len(words) + 6e6


@pytest.mark.parametrize("writer", [*WRITERS.values(), fasttext_with_ngrams])
def test_mutants_are_read_or_refused_clearly_and_soon(
    writer: Callable[[list[str], Matrix], bytes], tmp_path: Path
) -> None:
    words, matrix = example(12, 4)
    words[3] = "Größe"
    original, path = writer(words, matrix), tmp_path / "a"
    chance = random.Random(writer.__name__)
    outcomes = {"read": 0, "refused": 0}
    start = time.monotonic()
    for _ in range(1500):
        path.write_bytes(_mutant(original, chance))
        tracemalloc.start()
        try:
            file = read_word_vectors(path)
        except DamagedError as error:
            assert error.message.startswith(str(path))
            outcomes["refused"] += 1
        except InputError as error:
            assert error.todo
            outcomes["refused"] += 1
        else:
            assert len(file.words) == len(set(file.words)) == len(file.matrix) > 0
            assert np.isfinite(file.matrix).all()
            outcomes["read"] += 1
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 100e6
    assert time.monotonic() - start < 60
    assert min(outcomes.values()) > 100, outcomes


def _mutant(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, removed, inserted or repeated, or a count blown up."""
    mutant = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(max(1, len(mutant)))
        match chance.randrange(7):
            case 0:
                mutant[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del mutant[at : at + chance.randint(1, 20)]
            case 2:
                mutant[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                del mutant[at:]
            case 4:
                mutant[at:at] = mutant[at : at + chance.randint(1, 50)]
            case 5:
                mutant[:0] = chance.choice([b"9", b"-1 ", b"\n", b" ", b"\x1f\x8b"])
            case 6:
                mutant[at : at + 4] = chance.choice([b"\xff\xff\xff\x7f", b"\xff" * 4, b" nan", b"\n\n\n\n", bytes(4)])
    return bytes(mutant)
