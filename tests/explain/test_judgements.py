"""Files of similarities and analogies: read as they are spread, refused with a line where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsode.base.errors import InputError
from rhapsode.explain.judgements import read_judgements


def test_shared_files(shared_data: Path) -> None:
    folder = shared_data / "embeddings"
    for name, count in (("MC-30", 30), ("RG-65", 65), ("SIMLEX-999", 999), ("WS-353-ALL", 353)):
        assert len(read_judgements(folder / "word-sim" / f"EN-{name}.txt")) == count
    assert read_judgements(folder / "word-sim" / "EN-MC-30.txt")[0] == ("car", "automobile", 3.92)
    analogies = read_judgements(folder / "questions-words.txt")
    assert isinstance(analogies, dict)
    assert len(analogies) == 14
    assert sum(map(len, analogies.values())) == 19_544
    assert analogies["family"][0] == ("boy", "girl", "brother", "sister")


@pytest.mark.parametrize(
    "text",
    [
        "tiger\tcat\t7.35\nnew york\tbig city\t8\n",
        "tiger,cat,7.35\r\nnew york, big city ,8\r\n",
        "tiger;cat;7.35\nnew york;big city;8",
        "# people said\n\nWord 1\tWord 2\tHuman (mean)\ntiger\tcat\t7.35\n\nnew york\tbig city\t8\n",
        "\ufeffWord 1,Word 2,Human (mean)\ntiger,cat,7.35\nnew york,big city,8e0\n",
    ],
)
def test_pairs(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text, encoding="utf-8", newline="")
    assert read_judgements(tmp_path / "a") == [("tiger", "cat", 7.35), ("new york", "big city", 8.0)]


def test_pairs_with_spaces_between(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("sun  sunlight 50.0\nbird cock 3\n", encoding="utf-8")
    assert read_judgements(tmp_path / "a") == [("sun", "sunlight", 50.0), ("bird", "cock", 3.0)]


def test_analogies(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a b c d\n: two\ne f g h\n: three\n: two\ni\tj k l\n", encoding="utf-8")
    sections = {"analogies": [("a", "b", "c", "d")], "two": [("e", "f", "g", "h"), ("i", "j", "k", "l")], "three": []}
    assert read_judgements(tmp_path / "a") == sections


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "a: holds no line. A line has two words and a score, or four words."),
        (b"# only this\n", "a: holds no line."),
        (b"one two three\n", "a: holds no pair of words."),
        (b"one two 1\nthree four\n", "a:2: there are 2 fields. A line has two words and a score"),
        (b"one\ttwo\t1\nthree\tfour\tfive\n", "a:2: 'five' is not a finite number."),
        (b"one\ttwo\t1\nthree\tfour\tnan\n", "a:2: 'nan' is not a finite number."),
        (b"one\ttwo\t1\nthree\tfour\t1_0\n", "a:2: '1_0' is not a finite number."),
        (b"one\ttwo\t1\nthree\tfour\t1e999\n", "a:2: '1e999' is not a finite number."),
        (b"one\ttwo\t1\n\tfour\t1\n", "a:2: there are 2 fields."),
        (b"old new A 1.58\n", "a:1: there are 4 fields."),
        (b"word\n", "a:1: there is 1 field."),
        (b": family\none two three\n", "a:2: there are 3 words; an analogy has four."),
        (b": family\n", "a: holds no question."),
        (b"caf\xe9 tea 1\n", "a: is not UTF-8 text at byte 3."),
    ],
)
def test_files_that_cannot_be_used(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_judgements(tmp_path / "a")
    assert caught.value.message.startswith(f"{tmp_path}/{told}")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_judgements(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        read_judgements(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(InputError, match="is larger than 64 MB"):
        read_judgements(tmp_path / "large")
