"""`rhapsode similar WORD --model M`: the words whose vectors are nearest to a word's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from rhapsode.explain.embeddings import Neighbour, WordVectors

WIDEST_BAR = 30
WORDS_IN_HINT = 8


def similar(
    word: str,
    /,
    *,
    model: Path,
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 10,
    json: bool = False,
) -> None:
    """Show the words whose vectors are nearest to a word's.

    Near is a small angle: similarity is its cosine, and a full bar is 1, the same direction.

        rhapsode similar king --model runs/novels

    Parameters
    ----------
    word: str
        A word, as it is spelt in the model or file.
    model: Path
        A model folder, a checkpoint, a run, or a file of word vectors: GloVe, word2vec, fastText.
    top: int
        Show so many words, the nearest ones.
    json: bool
        Print one JSON object instead.
    """
    from dataclasses import asdict
    from json import dumps
    from shlex import join

    vectors = opened(model)
    note_composed(vectors, word)
    neighbours = vectors.nearest(word, top)
    if json:
        print(dumps({"model": str(model), "word": word, "neighbours": [asdict(each) for each in neighbours]}))
        return
    show(neighbours)
    near = [each.word for each in neighbours if each.word[0].isalnum()][:WORDS_IN_HINT]
    print(f"\nnext: {join(['rhapsode', 'embeddings', 'picture', str(model), word, *near, '--out', 'words.svg'])}")


def opened(model: Path) -> WordVectors:
    """The word vectors of a model or file, what is to be known of them told."""
    from rhapsode.base.progress import note
    from rhapsode.explain.embeddings import open_word_vectors

    vectors = open_word_vectors(model)
    for each in vectors.notes:
        note(each)
    return vectors


def note_composed(vectors: WordVectors, *words: str) -> None:
    """Say which words stand for the mean of several tokens."""
    from rhapsode.base.progress import note

    for word in words:
        vectors.vector(word)  # the error of an unknown word comes before any note
    if composed := [repr(word) for word in words if word not in vectors]:
        note(f"Not in the vocabulary, so taken as the mean of their tokens: {', '.join(composed)}.")


def show(neighbours: Sequence[Neighbour]) -> None:
    """A row for each word: the word, its similarity, and that as a bar."""
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import bar, console

    table = Table(box=None, pad_edge=False)
    table.add_column("word", overflow="fold")
    table.add_column("similarity", no_wrap=True)
    for each in neighbours:
        table.add_row(Text(visible(each.word)), f"{each.similarity:6.3f} {bar(each.similarity, WIDEST_BAR)}")
    console().print(table)


def visible(word: str) -> str:
    """A word as it is, or quoted where it holds what a terminal would obey or hide."""
    return word if word.isprintable() else repr(word)
