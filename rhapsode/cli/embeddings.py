"""`rhapsode embeddings evaluate|picture`: word vectors against people's judgements, and words on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators

from rhapsode.cli.similar import note_composed, opened, visible
from rhapsode.explain.judgements import VOCABULARY

if TYPE_CHECKING:
    from rhapsode.explain.embeddings import Accuracy, Correlation, WordVectors
    from rhapsode.explain.judgements import Analogies, Pairs

app = App(name="embeddings", help_format="markdown")

WORDS_FOR_HINT = 1000


@app.command(sort_key=0)
def evaluate(
    model: Path,
    /,
    *files: Path,
    vocabulary: Annotated[int, Parameter(validator=validators.Number(gte=1))] = VOCABULARY,
    read: Annotated[bool, Parameter(negative=())] = False,
    json: bool = False,
) -> None:
    """Compare word vectors with people's judgements.

    Similarity: Spearman's rank correlation of the cosines with the scores, over the pairs of which both words have a
    vector. Analogies: the share completed rightly, of those whose four words are in the vocabulary. Upper and lower
    case are one, as in word2vec's own tool.

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, a run, or a file of word vectors: GloVe, word2vec, fastText.
    files: Path
        Two words and a score on each line (WordSim-353, SimLex-999), or four words (questions-words.txt).
    vocabulary: int
        Analogies are asked of so many words, the first ones of the model or file.
    read: bool
        Take for a word what the model makes of it when it reads it as a text (`rhapsode embed`), not what its tokens'
        input embeddings are. For similarity only.
    json: bool
        Print one JSON object instead.
    """
    from dataclasses import asdict
    from json import dumps
    from shlex import quote

    from rhapsode.base.errors import InputError
    from rhapsode.explain.judgements import read_judgements

    if not files:
        raise InputError("there is no FILE", todo="Name files of word similarities or analogies.")
    judgements = [read_judgements(file) for file in files]  # first: what is wrong with them is known at once
    vectors = _read(model, judgements) if read else opened(model)
    correlations: list[tuple[Path, Correlation]] = []
    accuracies: list[tuple[Path, list[Accuracy]]] = []
    for file, each in zip(files, judgements, strict=True):
        if isinstance(each, dict):
            accuracies.append((file, vectors.analogies(each, vocabulary)))
        else:
            correlations.append((file, vectors.correlation(each)))
    vocabulary = min(vocabulary, len(vectors.words))
    if json:
        results: dict[str, Any] = {
            "model": str(model),
            "vocabulary": vocabulary,
            "similarity": [{"file": str(file)} | asdict(each) for file, each in correlations],
            "analogies": [{"file": str(file), "sections": [*map(asdict, each)]} for file, each in accuracies],
        }
        print(dumps(results))
        return
    if correlations:
        _show_correlations(correlations)
    for file, sections in accuracies:
        _show_accuracies(file, sections, vocabulary)
    word = max(vectors.words[:WORDS_FOR_HINT], key=len)  # the very first ones are signs and short words
    print(f"\nnext: rhapsode similar {quote(word)} --model {quote(str(model))}")


def _read(model: Path, judgements: Sequence[Pairs | Analogies]) -> WordVectors:
    """The judged words as the model reads them."""
    from rhapsode.base.errors import InputError
    from rhapsode.explain.embeddings import read_words
    from rhapsode.inference.language_model import load

    words: list[str] = []
    for each in judgements:
        if isinstance(each, dict):
            raise InputError("analogies are asked of a whole vocabulary, and --read reads the words of the files only")
        words += [word for first, second, _ in each for word in (first, second)]
    return read_words(load(model, "cpu"), words)


@app.command(sort_key=1)
def picture(
    model: Path,
    /,
    *words: str,
    out: Path,
    group: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    force: Annotated[bool, Parameter(negative=())] = False,
    json: bool = False,
) -> None:
    """Draw words on a plane: their first two principal components.

    The plane is the one on which these words lie furthest apart; the axes say which share of the variance it holds.
    Words that are near on it may be far from each other in what it does not show.

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, a run, or a file of word vectors: GloVe, word2vec, fastText.
    words: str
        The words to draw.
    out: Path
        The picture to write, .svg or .png.
    group: tuple
        More words, in a colour of their own, as in --group royal=king,queen. May be given several times.
    force: bool
        Replace the picture in --out.
    json: bool
        Print one JSON object with the coordinates.
    """
    from json import dumps
    from shlex import join

    from rhapsode.base.files import write_atomically
    from rhapsode.base.progress import note
    from rhapsode.explain import picture as drawing

    form = drawing.form_of(out, replace=force)
    groups = _groups(group)
    vectors = opened(model)
    every = list(dict.fromkeys([*words, *(word for some in groups.values() for word in some)]))
    note_composed(vectors, *every)
    projection = vectors.project(every)
    image, missing = drawing.picture(projection, form, groups)
    write_atomically(out, image)
    if missing and form == "png":
        note(f"No font here has {missing!r}: boxes stand for them. Write an .svg, which uses the fonts of its reader.")
    if json:
        points = dict(zip(projection.words, projection.points.tolist(), strict=True))
        print(dumps({"model": str(model), "out": str(out), "points": points, "shares": projection.shares}))
        return
    print(f"{out}: {len(every)} words, {100 * sum(projection.shares):.0f} % of their variance")
    print(f"next: {join(['rhapsode', 'similar', every[0], '--model', str(model)])}")


def _groups(texts: Sequence[str]) -> dict[str, list[str]]:
    """The words of each group, from texts like name=word,word."""
    from rhapsode.base.errors import InputError

    groups: dict[str, list[str]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        words = [word for word in listed.split(",") if word]
        if not name or not words:
            raise InputError(f"group {text!r} has no name or no words", todo="Write it as --group name=word,word.")
        for other, theirs in groups.items():
            if other == name or not set(theirs).isdisjoint(words):
                raise InputError(f"group {text!r} has its name or a word in common with {other!r}")
        groups[name] = words
    return groups


def _show_correlations(results: Sequence[tuple[Path, Correlation]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console

    composed = any(result.composed for _, result in results)
    table = Table(box=None, pad_edge=False)
    table.add_column("similarity", overflow="fold")
    for heading in ("Spearman", "pairs", "of", *(["composed"] if composed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for file, result in results:
        spearman = "none" if result.spearman is None else f"{result.spearman:.4f}"
        counts = [result.pairs, result.of, *([result.composed] if composed else [])]
        table.add_row(Text(file.name), spearman, *(f"{count:,}" for count in counts))
    console().print(table)
    if composed:
        print("composed: pairs with a word whose vector is the mean of those of its tokens")


def _show_accuracies(file: Path, sections: Sequence[Accuracy], vocabulary: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console
    from rhapsode.explain.embeddings import Accuracy

    counts = ([getattr(section, name) for section in sections] for name in ("right", "asked", "of"))
    total = Accuracy("all", *map(sum, counts))
    table = Table(box=None, pad_edge=False)
    table.add_column(f"analogies: {file.name}", overflow="fold")
    for heading in ("accuracy", "right", "asked", "of"):
        table.add_column(heading, justify="right", no_wrap=True)
    for section in (*sections, total):
        share = "none" if section.share is None else f"{100 * section.share:.1f} %"
        table.add_row(
            Text(visible(section.section)), share, *(f"{n:,}" for n in (section.right, section.asked, section.of))
        )
    console().print(table)
    print(f"asked: the questions whose words are among the first {vocabulary:,}")
