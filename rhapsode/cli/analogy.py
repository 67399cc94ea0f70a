"""`rhapsode analogy KING MAN WOMAN --model M`: the words nearest to king - man + woman."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators


def analogy(
    word: str,
    minus: str,
    plus: str,
    /,
    *,
    model: Path,
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 10,
    json: bool = False,
) -> None:
    """Complete an analogy: `king man woman` shows what is to woman as king is to man.

    The words nearest to king - man + woman, these three aside (3CosAdd, Mikolov et al. 2013).

        rhapsode analogy king man woman --model vectors.txt

    Parameters
    ----------
    word: str
        The word to begin from, as king.
    minus: str
        What is taken from it, as man.
    plus: str
        What is added instead, as woman.
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

    from rhapsode.cli.similar import note_composed, opened, show, visible

    vectors = opened(model)
    note_composed(vectors, word, minus, plus)
    neighbours = vectors.analogy(word, minus, plus, top)
    if json:
        asked = {"word": word, "minus": minus, "plus": plus}
        print(dumps({"model": str(model)} | asked | {"neighbours": [asdict(each) for each in neighbours]}))
        return
    print(f"{visible(word)} - {visible(minus)} + {visible(plus)}")
    show(neighbours)
    if neighbours:
        print(f"\nnext: {join(['rhapsode', 'similar', neighbours[0].word, '--model', str(model)])}")
